"""All-gathers to which each rank brings its own number of rows, and the reduce-scatters that are their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tests.run.test_ops import PLAIN, STRINGS, array, few, gradients, groups, numbers, on_ranks
from whale_tf.run import communicator, ops
from whale_tf.run.calls import in_any_order


@pytest.fixture(autouse=True)
def bounded() -> None:
    communicator.set_timeout(20)


@few
@given(groups, st.sampled_from(PLAIN), st.lists(st.integers(0, 5), min_size=12, max_size=12))
def test_each_rank_brings_its_own_number_of_rows(ranks: tuple[int, ...], dtype: tf.DType, rows: list[int]) -> None:
    rests: list[tuple[int, ...]] = [(), (3, 2), (0,)]
    inputs = [
        [numbers((rows[3 * place + k], *rest), dtype, 3 * place + k) for k, rest in enumerate(rests)]
        for place in range(len(ranks))
    ]
    found = on_ranks(ranks, ops.all_gather, inputs)
    for k in range(len(rests)):
        expected = np.concatenate([array(values[k]) for values in inputs])
        for values in found:
            np.testing.assert_array_equal(array(values[k]), expected)
            assert values[k].shape == expected.shape and values[k].dtype == dtype


def test_large_unequal_parts_are_gathered_beside_small_ones() -> None:
    rows = [[1 << 18, 1], [3, 0], [0, 2]]
    inputs = [[tf.fill([n, 2], float(10 * rank + k)) for k, n in enumerate(each)] for rank, each in enumerate(rows)]
    for found in on_ranks(range(3), ops.all_gather, inputs):
        for k in range(2):
            np.testing.assert_array_equal(found[k], np.concatenate([values[k] for values in inputs]))


def test_strings_are_gathered() -> None:
    inputs = [[STRINGS[0], tf.constant(["x"])], [tf.zeros([0, 2], tf.string), tf.constant(["", "yz"])]]
    for pairs, seconds in on_ranks(range(2), ops.all_gather, inputs):
        assert pairs.numpy().tolist() == STRINGS[0].numpy().tolist()
        assert seconds.numpy().tolist() == [b"x", b"", b"yz"]


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        (([2, 3], [5, 4]), r"rank 0 gives float \[\?,3\] and rank 1 gives float \[\?,4\]"),
        (([2], [2, 1]), r"rank 0 gives float \[\?\] and rank 1 gives float \[\?,1\]"),
    ],
)
def test_dims_other_than_rows_must_agree(shapes: Any, told: str) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"do not fit together: {told}"):
        on_ranks(range(2), ops.all_gather, [tf.zeros(shape) for shape in shapes])


def test_a_scalar_is_not_gathered() -> None:
    @tf.function(input_signature=[tf.TensorSpec(None)])
    def step(x: Any) -> Any:
        return ops.all_gather(x, ranks=(0,), rank=0, world="test_ops")

    with pytest.raises(tf.errors.InvalidArgumentError, match="was expected to have a dimension 0, along which members"):
        step(tf.constant(1.0))


UNEQUAL = [tf.constant([[1.0, 2.0]]), tf.zeros([0, 2]), tf.constant([[3.0, 5.0], [7.0, 11.0], [13.0, 17.0]])]


def test_gradient_of_unequal_rows_is_each_ranks_part_of_the_sum() -> None:
    weights = tf.reshape(tf.range(8.0), [4, 2])

    def call(x: Any, **place: Any) -> Any:
        return weights * ops.all_gather([x, tf.ones([place["rank"], 1])], **place)[0]

    summed = (111.0 * weights).numpy().tolist()
    assert gradients(call, UNEQUAL, [1.0, 10.0, 100.0]) == [summed[:1], [], summed[1:]]


def test_gradient_of_the_gradient_of_unequal_rows() -> None:
    @tf.function
    def step(*values: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(values)
            with tf.GradientTape() as inner:
                inner.watch(values)
                found = on_ranks(range(3), ops.all_gather, values, inline=True)
                loss = tf.add_n([tf.reduce_sum(y**3) for y in found])
            norm = tf.add_n([tf.reduce_sum(g**2) for g in inner.gradient(loss, values)])
        return outer.gradient(norm, values)

    # The loss is 3 sum x^3, its gradient 9 x^2, the norm of that 81 x^4.
    for x, gradient in zip(UNEQUAL, step(*UNEQUAL), strict=True):
        np.testing.assert_allclose(gradient, 324 * x**3)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [[1, 3]],
            r"tensor 0 of 1, float \[3,2\], on rank 0, was expected to have a dimension 0 that is the sum",
        ),
        ([[4, -1]], r"was expected to have a dimension 0 that is the sum of its rows, 4 -1"),
        ([[1, 1, 1]], r"on rank 0: rows \[1,3\], were expected to be \[1,2\]: of each tensor and member"),
    ],
)
def test_parts_that_are_not_the_whole_are_refused(rows: Any, told: str) -> None:
    place = communicator.make_communicator(range(2), "test_ops").place(0)
    module = communicator.load()
    with pytest.raises(tf.errors.InvalidArgumentError, match=told):
        module.whale_reduce_scatter(place, [tf.zeros([3, 2])], [tf.constant(rows, tf.int64)], label="parts")


def test_one_function_gathers_unequal_rows_of_all_members_and_their_gradient() -> None:
    @tf.function(
        input_signature=[tf.TensorSpec([None, 2]), tf.TensorSpec([], tf.float32), tf.TensorSpec([3], tf.int64)]
    )
    def step(x: Any, factor: Any, place: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = ops.all_gather(x, place=place)
            loss = tf.reduce_sum(factor * tf.reshape(tf.range(8.0), [4, 2]) * y)
        return y, tape.gradient(loss, x)

    mesh = communicator.make_communicator(range(3), "test_all_gather")
    function = step.get_concrete_function()

    @tf.function
    def all_members() -> Any:
        found = []
        for member, x in enumerate(UNEQUAL):
            with tf.device(f"CPU:{member}"):
                found.append(function(x, tf.constant(10.0**member), mesh.place(member, number=0)))
                tf.nest.map_structure(in_any_order, found[-1])
        return found

    summed = 111.0 * np.arange(8.0).reshape([4, 2])
    for (y, gradient), part in zip(all_members(), [summed[:1], summed[:0], summed[1:]], strict=True):
        np.testing.assert_array_equal(y, np.concatenate(UNEQUAL))
        np.testing.assert_array_equal(gradient, part)


def test_gradient_of_a_mean_in_unequal_parts() -> None:
    mesh, module = communicator.make_communicator(range(2), "test_all_gather"), communicator.load()
    rows = [tf.constant([[1, 2]], tf.int64)]

    def call(x: Any, rank: int, **_: Any) -> Any:
        made = module.whale_reduce_scatter(mesh.place(rank), [x], rows, reduction="mean", scale=3.0, label="parts")
        return in_any_order(made[0])

    inputs = [tf.constant([1.0, 2.0, 4.0]), tf.constant([3.0, 8.0, 6.0])]
    assert [part.numpy().tolist() for part in on_ranks(range(2), call, inputs)] == [[6.0], [15.0, 15.0]]
    assert gradients(call, inputs, [1.0, 10.0]) == [[1.5, 15.0, 15.0]] * 2


def test_parts_of_which_nothing_is_said_are_refused() -> None:
    mesh, module = communicator.make_communicator(range(2), "test_all_gather"), communicator.load()
    with tf.Graph().as_default(), pytest.raises(ValueError, match="neither members nor their rows are given"):
        module.whale_reduce_scatter(mesh.place(0), [tf.zeros([2])], [], label="parts")
    with pytest.raises(tf.errors.InvalidArgumentError, match="was made for 0 members, and its communicator has 2"):
        module.whale_reduce_scatter(mesh.place(0), [tf.zeros([2])], [], label="parts")
