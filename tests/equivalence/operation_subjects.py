"""Steps of one operation, from the cases that its rule is compared with TensorFlow in: on pieces and on totals.

    pieces   each dim of an operand is the batch: also those that the rule says must be whole
    totals   an operand is a sum, a mean, a maximum or a minimum over the batch

What the operation gives is returned, where what no part can run is run once; and it is a gradient, if that is not
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tests.equivalence.harness import Layout, Scopes, Training
from tests.plan.rule_cases import Array, Case
from tests.plan.rule_checks import call, rule_for
from whale_tf.plan.rules import Rule

SHARES = (1, 2)
EXAMPLES, LARGEST = 9, 4
TOTALS: dict[str, Callable[..., tf.Tensor]] = {
    "sum": tf.reduce_sum,
    "mean": tf.reduce_mean,
    "max": tf.reduce_max,
    "min": tf.reduce_min,
    "any": tf.reduce_any,
    "all": tf.reduce_all,
}
# By the kind of numbers: truth values, integers, floats, complex numbers.
OF_KIND = {"b": ("any", "all"), "i": ("sum", "max"), "f": ("sum", "mean", "max", "min"), "c": ("sum", "mean")}
Outputs = Callable[..., Any]


def layout_of(examples: int) -> Layout:
    """Two parts of unequal size."""
    return Layout(replicas=2, shares=SHARES, examples=examples)


def trainings(given: Case) -> Iterator[tuple[str, list[Training]]]:
    """The steps of a case, each with its name: one that trains, and one that only returns if that is refused."""
    rule = rule_for(given)
    yield from _on_totals(given)
    seen = set[str]()
    for position, letters in enumerate(rule.inputs):
        for dim, letter in enumerate(letters):
            if letter not in seen and _may_be_batch(given, rule, position, dim):
                seen |= {letter} - {"."}
                yield _on_pieces(given, rule, position, dim)


def _may_be_batch(given: Case, rule: Rule, position: int, dim: int) -> bool:
    known = position in rule.shapes or position in given.known
    return not known and given.inputs[position].shape[dim] > len(SHARES)


def _on_pieces(given: Case, rule: Rule, position: int, dim: int) -> tuple[str, list[Training]]:
    """A dim of an operand is the batch, and so is that of its letter in all other operands."""
    letter = rule.inputs[position][dim]
    dims = {
        at: dim if at == position else letters.index(letter)
        for at, letters in enumerate(rule.inputs)
        if at == position or (letter != "." and letter in letters)
    }

    def outputs(*batch: tf.Tensor) -> Any:
        inputs = list(map(tf.constant, given.inputs))
        for (at, axis), each in zip(dims.items(), batch, strict=True):
            rank = given.inputs[at].ndim
            order = [*range(1, axis + 1), 0, *range(axis + 1, rank)]
            inputs[at] = tf.transpose(each, order)
        return call(given, inputs)

    arrays = [np.moveaxis(given.inputs[at], axis, 0) for at, axis in dims.items()]
    makes = (_training, _returning) if letter != "." else (_returning,)
    return f"{given} dim {dim} of operand {position}", [make(outputs, arrays) for make in makes]


def _on_totals(given: Case) -> Iterator[tuple[str, list[Training]]]:
    """Each operand is each total of examples, of its own size."""
    taken = [(at, how) for at, each in enumerate(given.inputs) if each.size for how in OF_KIND.get(each.dtype.kind, ())]
    taken = [(at, how) for at, how in taken if at not in given.known and at not in rule_for(given).shapes]
    if not taken:
        return

    def outputs(*batch: tf.Tensor) -> Any:
        found = []
        for (at, how), each in zip(taken, batch, strict=True):
            inputs = list(map(tf.constant, given.inputs))
            inputs[at] = TOTALS[how](each, axis=0)
            found.append(call(given, inputs))
        return found

    yield f"{given} of totals", [_returning(outputs, [_examples(given.inputs[at], how) for at, how in taken])]


def _examples(total: Array, how: str) -> Array:
    """Examples whose total is about this, with all its kinds of numbers in the range of the operation."""
    rows = np.arange(EXAMPLES).reshape(-1, *(1,) * total.ndim)
    if total.dtype.kind == "b":
        return np.asarray(np.where(rows == LARGEST, total, how == "all"))
    if total.dtype.kind == "i" and how == "sum":
        return np.where(rows == 0, total // 2, np.where(rows == LARGEST, total - total // 2, 0)).astype(total.dtype)
    if total.dtype.kind == "i":
        return np.where(rows == LARGEST, total, np.minimum(total, 0)).astype(total.dtype)
    draw = np.random.default_rng(5)
    if how in ("max", "min"):
        return (total * draw.uniform(0.8, 1.0, (EXAMPLES, *total.shape))).astype(total.dtype)
    shares = draw.uniform(-0.3, 0.5, (EXAMPLES, *total.shape))
    shares += (1 - shares.sum(axis=0)) / EXAMPLES
    return (total * shares * (EXAMPLES if how == "mean" else 1)).astype(total.dtype)


def _returning(outputs: Outputs, batch: Sequence[Array]) -> Training:
    scopes = Scopes(layout_of(len(batch[0])))

    def step(*given: tf.Tensor) -> Any:
        with scopes.replica:
            return outputs(*given)

    return Training(step, [tuple(batch)], [])


def _training(outputs: Outputs, batch: Sequence[Array]) -> Training:
    """The same results are what a variable's gradient is, and depend on it: they cannot wait, nor come first."""
    scopes, weight = Scopes(layout_of(len(batch[0]))), tf.Variable(1.0, dtype=tf.float64)

    def step(*given: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            found = tf.nest.flatten(outputs(*(_times_one(each, tf.stop_gradient(weight)) for each in given)))
            loss = weight * tf.add_n([tf.reduce_mean(_real(each)) for each in found])
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss, found

    return Training(step, [tuple(batch)], [weight])


def _times_one(values: tf.Tensor, one: tf.Tensor) -> tf.Tensor:
    """The same numbers, made with what a variable is."""
    if values.dtype == tf.string:
        return tf.where(one > 0, values, "")
    if values.dtype == tf.bool:
        return values & (one > 0)
    return values * tf.cast(one, values.dtype)


def _real(values: tf.Tensor) -> tf.Tensor:
    if values.dtype == tf.string:
        values = tf.strings.length(values)
    return tf.cast(tf.math.real(values) if values.dtype.is_complex else values, tf.float64)
