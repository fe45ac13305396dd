"""Compares a rule with TensorFlow: what it claims of letters, of linearity and of order.

An operation runs on whole operands, and then on two uneven parts of them, letter by letter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from tests.plan.rule_cases import Array, Case
from whale_tf.capture.attributes import attributes_of
from whale_tf.ir.graph import DType, Node, Ref, Shape, TensorType
from whale_tf.ir.sharding import Reduction
from whale_tf.plan.rules import Rule, rule_of, shape_operands

ALIASES = {"Gradient": "Identity", "Write": "Identity"}
REDUCED: Mapping[Reduction, Callable[[Array, Array], Array]] = {
    Reduction.SUM: np.add,
    Reduction.MAX: np.maximum,
    Reduction.MIN: np.minimum,
    Reduction.PROD: np.multiply,
    Reduction.ALL: np.logical_and,
    Reduction.ANY: np.logical_or,
}
RENAMED = {"reduction_indices": "axis", "split_dim": "axis", "t": "x", "e": "y"}  # as raw_ops call some arguments
Results = list[Array]


# The operation, as TensorFlow runs it and as planning sees it.


def call(given: Case, inputs: Sequence[Any]) -> Any:
    """Calls the raw op, its inputs by their names."""
    op = ALIASES.get(given.op, given.op)
    names = op_def_registry.get(op).input_arg
    taken = inspect.signature(getattr(tf.raw_ops, op)).parameters
    listed = len(inputs) - len(names) + 1
    left, arguments = list(inputs), {}
    for name in names:
        key = name.name if name.name in taken else RENAMED[name.name]
        if name.number_attr or name.type_list_attr:
            arguments[key], left = left[:listed], left[listed:]
        else:
            arguments[key] = left.pop(0)
    return getattr(tf.raw_ops, op)(**arguments, **given.attrs)


def run(given: Case, inputs: Sequence[Array]) -> Results:
    """The results on these inputs."""
    return [np.asarray(each) for each in tf.nest.flatten(call(given, [tf.constant(each) for each in inputs]))]


def node_of(given: Case) -> tuple[Node, list[TensorType], list[Array | None]]:
    """The node as capture makes it, the types of its inputs, and what planning knows of their values."""
    with tf.Graph().as_default() as graph:
        tensors = [tf.constant(each) for each in given.inputs]
        call(given, tensors)
        operation = graph.get_operations()[-1]
    inputs = [_typed(tensor, np.shape(each)) for tensor, each in zip(tensors, given.inputs, strict=True)]
    results = run(given, given.inputs)
    outputs = [_typed(tensor, each.shape) for tensor, each in zip(operation.outputs, results, strict=True)]
    refs = tuple(Ref(f"in{position}") for position in range(len(inputs)))
    attrs = attributes_of(operation.node_def.attr)
    known = {position % len(inputs) for position in shape_operands(given.op)} | set(given.known)
    values = [each if position in known else None for position, each in enumerate(given.inputs)]
    return Node("node", given.op, refs, attrs=attrs, outputs=tuple(outputs)), inputs, values


def _typed(tensor: Any, shape: Sequence[int]) -> TensorType:
    return TensorType(DType(tensor.dtype.name), Shape(shape))


def rule_for(given: Case) -> Rule:
    """The rule of the table."""
    rule = rule_of(*node_of(given))
    assert rule is not None
    return rule


# The claims.


def wrong_letters(given: Case, rule: Rule) -> list[str]:
    """What two parts give, where it is not what the rule says; one text for each letter."""
    whole = run(given, given.inputs)
    lengths = [len(letters) for letters in (*rule.inputs, *rule.outputs)]
    assert lengths == [each.ndim for each in (*given.inputs, *whole)], f"{rule} is for other ranks"
    wrong = []
    for letter, size in sizes(given, rule, whole).items():
        first = max(1, size // 2 - 1)
        parts = []
        for index, (start, stop) in enumerate(((0, first), (first, size))):
            try:
                parts.append(run(given, part_of(given, rule, whole, letter, (start, stop, index))))
            except (tf.errors.OpError, ValueError) as error:
                wrong.append(f"{letter}: {error}")
        if len(parts) == 2 and not all(
            agree(letters, letter, rule, result, pieces, first / size)
            for letters, result, pieces in zip(rule.outputs, whole, zip(*parts, strict=True), strict=True)
        ):
            wrong.append(f"{letter}: parts of {first} and {size - first} do not give the whole")
    return wrong


def sizes(given: Case, rule: Rule, whole: Results) -> dict[str, int]:
    """The letters that may be cut, with the size of their dims."""
    found: dict[str, int] = {}
    for letters, each in zip((*rule.inputs, *rule.outputs), (*given.inputs, *whole), strict=True):
        for letter, size in zip(letters, each.shape, strict=True):
            assert found.setdefault(letter, size) == size or letter == ".", f"{rule}: {letter} is {size} too"
    reduced = {letter for letter in found if any(letter not in letters for letters in rule.outputs)}
    uncut = reduced if rule.reduction is None else set()
    return {letter: size for letter, size in found.items() if letter not in uncut | {"."} and size > 1}


def part_of(given: Case, rule: Rule, whole: Results, letter: str, piece: tuple[int, int, int]) -> list[Array]:
    """The inputs of one part: cut, told its shape, or whole; a term that has to be counted once is the first part's."""
    start, stop, index = piece
    reduced = any(letter not in letters for letters in rule.outputs)
    inputs = []
    for position, (letters, each) in enumerate(zip(rule.inputs, given.inputs, strict=True)):
        if letter in letters:
            each = each.take(range(start, stop), letters.index(letter))
        elif position in rule.shapes and each.shape == (whole[0].ndim,) and letter in rule.outputs[0]:
            dim = rule.outputs[0].index(letter)
            local = each.copy()
            local[dim] = stop - start if each[dim] == whole[0].shape[dim] else each[dim]
            each = local
        elif reduced and position in rule.additive and index:
            each = np.zeros_like(each)
        inputs.append(each)
    return inputs


def agree(letters: str, letter: str, rule: Rule, whole: Array, parts: Sequence[Array], share: float) -> bool:
    """Whether an output's parts are the whole one."""
    first, second = parts
    if letter in letters:
        dim = letters.index(letter)
        fits = np.delete(first.shape, dim).tolist() == np.delete(second.shape, dim).tolist()
        return fits and same(np.concatenate((first, second), dim), whole)
    if rule.mean:
        return same(share * first + (1 - share) * second, whole)
    assert rule.reduction is not None
    return same(REDUCED[rule.reduction](first, second), whole)


def wrong_numbers(given: Case, rule: Rule) -> list[str]:
    """Claims about sums, factors and order that do not hold."""
    wrong = [f"linear in {position}" for position in sorted(rule.linear) if not is_linear(given, {position})]
    if rule.additive and not is_linear(given, rule.additive):
        wrong.append(f"linear jointly in {sorted(rule.additive)}")
    for position, power in rule.powers.items():
        if not is_power(given, position, power):
            wrong.append(f"power {power} of {position}")
    if rule.increasing and given.inputs[0].dtype.kind in "fiu" and not is_increasing(given):
        wrong.append("increasing")
    return wrong


def is_linear(given: Case, positions: Collection[int]) -> bool:
    """f(x + y) = f(x) + f(y) and f(2 x) = 2 f(x) in these inputs together, the others fixed."""
    second = {position: other(given, position) for position in positions}
    both = {position: given.inputs[position] + each for position, each in second.items()}
    twice = {position: 2 * given.inputs[position] for position in positions}
    here, there = run(given, given.inputs), run(given, changed(given, second))
    sums = [left + right for left, right in zip(here, there, strict=True)]
    precision = precision_of(given, here)
    return all_same(run(given, changed(given, both)), sums, precision) and all_same(
        run(given, changed(given, twice)), [2 * each for each in here], precision
    )


def is_power(given: Case, position: int, power: Fraction) -> bool:
    """f(4 x) = 4^p f(x)."""
    whole = run(given, given.inputs)
    scaled = run(given, changed(given, {position: 4 * given.inputs[position]}))
    return all_same(scaled, [each * 4 ** float(power) if power else each for each in whole])


def is_increasing(given: Case) -> bool:
    """It commutes with max and min of input 0."""
    second = other(given, 0)
    here, there = run(given, given.inputs), run(given, changed(given, {0: second}))
    for extreme in (np.maximum, np.minimum):
        both = run(given, changed(given, {0: extreme(given.inputs[0], second)}))
        if not all_same(both, [extreme(left, right) for left, right in zip(here, there, strict=True)]):
            return False
    return True


def other(given: Case, position: int) -> Array:
    """An input's numbers in another order and size, of the same type and range."""
    each = given.inputs[position]
    shuffled = np.random.default_rng(3).permutation(each.reshape(-1)).reshape(each.shape)
    return np.asarray(shuffled if each.dtype.kind in "iu" else 0.75 * shuffled, each.dtype)


def changed(given: Case, inputs: Mapping[int, Array]) -> list[Array]:
    """The inputs with others in the place of some."""
    return [np.asarray(inputs.get(position, each), each.dtype) for position, each in enumerate(given.inputs)]


def precision_of(given: Case, results: Results) -> float:
    """What rounding may change: sums of parts are added in another order."""
    widths = {each.dtype: each.dtype.itemsize for each in (*given.inputs, *results) if each.dtype.kind not in "iubOSU"}
    if any(width == 2 for width in widths.values()):
        return 2e-2
    return 2e-5 if widths.keys() & {np.dtype(np.float32), np.dtype(np.complex64)} else 1e-9


def all_same(left: Results, right: Results, precision: float = 2e-5) -> bool:
    return all(same(a, b, precision) for a, b in zip(left, right, strict=True))


def same(left: Array, right: Array, precision: float = 2e-5) -> bool:
    """Equal: exactly if they are no floats."""
    if left.shape != right.shape or left.dtype.kind in "OSU" or left.dtype == np.bool_:
        return bool(np.array_equal(left, right))
    return bool(np.allclose(left.astype(complex), right.astype(complex), rtol=precision, atol=precision))
