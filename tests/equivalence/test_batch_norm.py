"""BatchNorm: the statistics are those of a micro-batch; moving averages take the mean of them, once per step.

    replica 0    a ─ 2 examples ─▶ a0      a ─ 2 examples ─▶ a1 ─╮
    replica 1    a ─ 2 examples ─▶ b0      a ─ 1 example ──▶ b1 ─┴▶ mean, weighted by examples ─▶ the new moving average

The reference does exactly that in a Python loop on one device, and divides a batch as the step does: replicas first,
the earlier ones taking what is left over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import pytest
import tensorflow as tf

from tests.equivalence.harness import (
    SEED,
    TOLERANCE,
    Case,
    Layout,
    Numbers,
    Scopes,
    Training,
    check,
    differences,
    fresh,
    numbers,
    parallel,
    reference,
)
from tests.equivalence.models import CLASSES, WIDTH, classified, cross_entropy, dense, optimized, variables_of


def normalized(scopes: Scopes) -> Training:
    """Four dense layers, of which two are followed by BatchNorm."""
    return training_and_blocks(scopes)[0]


def training_and_blocks(scopes: Scopes) -> tuple[Training, list[Any]]:
    """The training, whose owners end with the two BatchNorms and the optimizer, and its blocks."""
    norms = [keras.layers.BatchNormalization(momentum=0.8) for _ in range(2)]
    for norm in norms:
        norm.build((None, WIDTH))
    layers = [dense(WIDTH), dense(WIDTH), dense(WIDTH), dense(CLASSES, activation=None)]
    blocks = [
        layers[0],
        lambda h: norms[0](layers[1](h), training=True),
        lambda h: norms[1](layers[2](h), training=True),
        layers[3],
    ]
    variables = variables_of([*layers, *norms])
    optimizer = optimized(keras.optimizers.SGD(0.1, momentum=0.9), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return Training(step, classified(scopes.examples), [*layers, *norms, optimizer]), blocks


def parts(total: int, weights: Sequence[float]) -> list[int]:
    """Divides examples by weights, in whole numbers that are as near as can be; ties go to the earlier parts."""
    exact = [total * weight / sum(weights) for weight in weights]
    sizes = [int(size) for size in exact]
    nearest = sorted(range(len(sizes)), key=lambda i: (sizes[i] - exact[i], i))
    for i in nearest[: total - sum(sizes)]:
        sizes[i] += 1
    return sizes


def by_definition(layout: Layout) -> Numbers:
    """The numbers of the same training with replicas and micro-batches written as loops."""
    keras.utils.set_random_seed(SEED)
    whole, blocks = training_and_blocks(Scopes(Layout(examples=layout.examples)))
    *layers, optimizer = whole.owners
    moving = [variable for layer in layers for variable in layer.non_trainable_variables]
    variables = variables_of(layers)
    one = Scopes(Layout())

    def gradients_of(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss = cross_entropy(y, one.through(blocks, x))
        return loss, tape.gradient(loss, variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        begin = [tf.identity(variable.value) for variable in moving]
        ends = [tf.zeros_like(value) for value in begin]
        total, sums, first = tf.constant(0.0), [tf.zeros_like(variable) for variable in variables], 0
        for examples in parts(layout.examples, layout.shares or [1] * layout.replicas):
            for size in parts(examples, [1] * layout.micro_batches):
                for variable, value in zip(moving, begin, strict=True):
                    variable.assign(value)
                loss, gradients = gradients_of(x[first : first + size], y[first : first + size])
                first, share = first + size, size / layout.examples
                total += share * loss
                sums = [a + share * b for a, b in zip(sums, gradients, strict=True)]
                ends = [end + share * variable.value for end, variable in zip(ends, moving, strict=True)]
        for variable, value in zip(moving, ends, strict=True):
            variable.assign(value)
        optimizer.apply_gradients(zip(sums, variables, strict=True))
        return total

    return numbers(whole, tf.function(step, autograph=False))


# A micro-batch has 4 examples or more: with 2, every normalized number is 1 or -1, and gradients are rounding.
LAYOUTS = (
    Layout(micro_batches=4),
    Layout(replicas=2),
    Layout(replicas=2, stages=2, micro_batches=4, examples=32),
    Layout(replicas=4, stages=2, micro_batches=2, schedule="gpipe", examples=32),
    Layout(stages=4, micro_batches=4, schedule="zero_bubble"),
    Layout(replicas=2, stages=2, micro_batches=2, examples=22),
    Layout(replicas=2, stages=2, micro_batches=2, shares=(3, 1), examples=32),
    Layout(stages=4, devices=2, micro_batches=4, schedule="interleaved"),
    Layout(replicas=2, stages=4, micro_batches=2, shares=(1, 2), places=((0, 0, 1, 1), (2, 3, 4, 5)), examples=32),
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_statistics_are_those_of_a_micro_batch(layout: Layout) -> None:
    step, whole = parallel(Case(normalized), layout)
    # oneDNN multiplies matrices of inlined calls in another order; four examples, normalized, make more of it.
    wrong = differences(numbers(whole, step), by_definition(layout), 3 * TOLERANCE)
    assert not wrong, "\n  ".join([str(layout), *wrong])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("options", [{"batch_norm": "global"}, {"coupling": "exact"}], ids=str)
def test_global_statistics_are_one_device(layout: Layout, options: dict[str, str]) -> None:
    """The statistics are those of the global batch, in the backward as well."""
    step, training = parallel(Case(normalized), layout, **options)
    wrong = differences(numbers(training, step), reference(Case(normalized), layout.examples), TOLERANCE)
    assert not wrong, "\n  ".join([str(layout), *wrong])


# Blocks of convolutions, normalizations and shortcuts.


def residual(axis: int, dtype: str) -> Case:
    """Two such blocks on images [8, 8, 3]; an axis of 1 keeps the rows of an image apart."""

    def build(scopes: Scopes) -> Training:
        options: dict[str, Any] = {"dtype": dtype}
        convolutions = [keras.layers.Conv2D(4, 3, padding="same", use_bias=False, **options) for _ in range(2)]
        norms = [keras.layers.BatchNormalization(axis=axis, momentum=0.8, **options) for _ in range(2)]
        head = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(CLASSES, **options)])
        layers = [*convolutions, *norms, head]

        def block(index: int, h: tf.Tensor) -> tf.Tensor:
            with scopes.stage_of(index, 2):
                made = tf.nn.relu(norms[index](convolutions[index](h), training=True))
                return made + h if index else made

        head(block(1, block(0, tf.zeros((1, 8, 8, 3)))))
        variables = variables_of(layers)
        optimizer = optimized(keras.optimizers.SGD(0.1), variables)

        def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape, scopes.replica:
                h = block(1, block(0, x))
                with scopes.stage_of(1, 2):
                    loss = cross_entropy(y, tf.cast(head(h), tf.float32))
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        return Training(step, classified(scopes.examples, 8, 8, 3), [*layers, optimizer])

    return Case(build, name=f"residual over {axis} in {dtype}")


RESIDUAL = {axis: residual(axis, "float32") for axis in (-1, 1)}


@pytest.mark.parametrize(
    "layout",
    [
        Layout(replicas=2),
        Layout(replicas=2, stages=2, micro_batches=2, examples=13),
        Layout(stages=2, micro_batches=4, schedule="zero_bubble"),
        Layout(replicas=2, shares=(3, 1), micro_batches=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("axis", RESIDUAL)
def test_global_statistics_of_residual_blocks_are_one_device(axis: int, layout: Layout) -> None:
    step, training = parallel(RESIDUAL[axis], layout, batch_norm="global")
    wrong = differences(numbers(training, step), reference(RESIDUAL[axis], layout.examples), TOLERANCE)
    assert not wrong, "\n  ".join([str(layout), *wrong])


def test_global_statistics_are_one_device_in_mixed_precision() -> None:
    """In float16 sums over parts round in other places than one over all; in float64 nothing is left but the plan."""
    layout = Layout(replicas=2, stages=2, micro_batches=2)
    step, training = parallel(residual(-1, "mixed_float16"), layout, batch_norm="global")
    batch = training.batches[0]
    assert step.verify(*batch).largest < 1e-2
    assert step.verify(*batch, precision="float64").largest < 1e-6
    local, _ = parallel(residual(-1, "mixed_float16"), layout)
    assert local.verify(*batch, precision="float64").largest > 1e-2


@pytest.mark.parametrize("layout", [Layout(), Layout(stages=2), Layout(stages=4, schedule="gpipe")], ids=str)
def test_stages_alone_equal_one_device(layout: Layout) -> None:
    check(Case(normalized), layout)


def test_definition_with_one_part_is_one_device() -> None:
    """The reference of this file agrees with the plain one where the two mean the same."""
    plain = fresh(Case(normalized), Layout())
    assert not differences(by_definition(Layout()), numbers(plain, tf.function(plain.step)), TOLERANCE)


def test_definition_differs_from_one_device() -> None:
    """Else the tests above would say nothing about micro-batches."""
    plain = fresh(Case(normalized), Layout())
    assert differences(by_definition(Layout(micro_batches=4)), numbers(plain, tf.function(plain.step)), 100 * TOLERANCE)


def test_verify_sees_other_statistics() -> None:
    step, whole = parallel(Case(normalized), Layout(micro_batches=4))
    assert step.verify(*whole.batches[0]).largest > 100 * TOLERANCE
