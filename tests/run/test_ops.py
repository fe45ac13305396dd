"""Collectives among devices of one process against numpy: values, shapes, gradients, errors, cancellation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whale_tf.errors import DeviceError, PlanError
from whale_tf.run import communicator, ops

# Each example traces a function of its own.
few = settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
FLOATS = [tf.float16, tf.bfloat16, tf.float32, tf.float64]
NUMBERS = [*FLOATS, tf.int32, tf.int64, tf.bool]
PLAIN = [*NUMBERS, tf.int8, tf.uint16, tf.complex64]
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "product": np.prod,
}
shapes = st.lists(st.sampled_from([(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (257,)]), min_size=1, max_size=4)
groups = st.sampled_from([(0, 1), (1, 0), (0, 1, 2, 3), (3, 0, 2), (2,)])


@pytest.fixture(autouse=True)
def bounded() -> None:
    communicator.set_timeout(20)


def on_ranks(
    ranks: Sequence[int], call: Callable[..., Any], inputs: Sequence[Any], *, inline: bool = False
) -> list[Any]:
    """Calls `call(input, rank=…)` for each rank on its device, all in one function."""
    place = {"ranks": tuple(ranks), "world": "test_ops"}

    def all_ranks(*values: Any) -> list[Any]:
        found = []
        for rank, value in zip(ranks, values, strict=True):
            with tf.device(f"CPU:{rank}"):
                found.append(call(value, rank=rank, **place))
        return found

    return list(all_ranks(*inputs) if inline else tf.function(all_ranks)(*inputs))


def numbers(shape: Sequence[int], dtype: tf.DType, seed: int) -> Any:
    """Small whole numbers: exact in every type, and so are their sums and products."""
    drawn = np.random.default_rng(seed).integers(-3, 4, size=shape)
    return tf.cast(tf.constant(drawn), dtype)


def lists(ranks: Sequence[int], shapes: Sequence[Sequence[int]], dtype: tf.DType) -> list[list[Any]]:
    return [[numbers(shape, dtype, 10 * rank + k) for k, shape in enumerate(shapes)] for rank in ranks]


def array(tensor: Any) -> Any:
    return np.asarray(tf.cast(tensor, tf.float64) if tensor.dtype in (tf.float16, tf.bfloat16) else tensor)


@few
@given(shapes, groups, st.sampled_from(NUMBERS), st.sampled_from(sorted(REDUCTIONS)))
def test_all_reduce_is_numpys_reduction(
    shapes: list[tuple[int, ...]], ranks: tuple[int, ...], dtype: tf.DType, reduction: str
) -> None:
    if reduction == "mean" and not dtype.is_floating:
        reduction = "sum"
    inputs = lists(ranks, shapes, dtype)
    found = on_ranks(ranks, lambda values, **place: ops.all_reduce(values, reduction, **place), inputs)
    for k in range(len(shapes)):
        stacked = np.stack([array(values[k]) for values in inputs])
        expected = REDUCTIONS[reduction](stacked, axis=0).astype(stacked.dtype)
        for values in found:
            # A mean of three is rounded to the type's precision, and to float64's here.
            tolerance = {tf.float16: 1e-3, tf.bfloat16: 1e-2, tf.float32: 1e-6}.get(dtype, 0) * (reduction == "mean")
            np.testing.assert_allclose(array(values[k]), expected, rtol=max(tolerance, 1e-15))
            assert values[k].dtype == dtype


@few
@given(st.sampled_from([(0,), (1,), (3, 2)]), groups, st.sampled_from(PLAIN))
def test_moves_are_numpys(rest: tuple[int, ...], ranks: tuple[int, ...], dtype: tf.DType) -> None:
    n, size = 2, len(ranks)
    inputs = [numbers((n * size, *rest), dtype, rank) for rank in ranks]
    gathered = on_ranks(ranks, ops.all_gather, inputs)
    moved = on_ranks(ranks, ops.all_to_all, inputs)
    first = on_ranks(ranks, lambda x, **place: ops.broadcast(x, root=ranks[-1], **place), inputs)
    arrays = [array(each) for each in inputs]
    for place in range(size):
        np.testing.assert_array_equal(array(gathered[place]), np.concatenate(arrays))
        parts = [each[n * place : n * (place + 1)] for each in arrays]
        np.testing.assert_array_equal(array(moved[place]), np.concatenate(parts))
        np.testing.assert_array_equal(array(first[place]), arrays[-1])


@few
@given(groups, st.sampled_from(FLOATS), st.sampled_from([1.0, 0.5]))
def test_reduce_scatter_is_a_part_of_the_sum(ranks: tuple[int, ...], dtype: tf.DType, scale: float) -> None:
    inputs = [numbers((3 * len(ranks), 2), dtype, rank) for rank in ranks]
    found = on_ranks(ranks, lambda x, **place: ops.reduce_scatter(x, scale=scale, **place), inputs)
    total = scale * np.sum([array(each) for each in inputs], axis=0)
    for place, part in enumerate(found):
        np.testing.assert_array_equal(array(part), total[3 * place : 3 * place + 3])


def test_large_values_and_structures_of_several_types() -> None:
    inputs = [{"large": tf.fill([1 << 20], rank + 1.0), "whole": (tf.constant(rank), [])} for rank in range(4)]
    for found in on_ranks(range(4), ops.all_reduce, inputs):
        assert found["whole"][0].numpy() == 6 and found["whole"][1] == []
        np.testing.assert_array_equal(found["large"], np.full(1 << 20, 10.0, np.float32))


def test_inputs_stay_as_they_are() -> None:
    inputs = [tf.fill([1000], 1.0 + rank) for rank in range(2)]
    on_ranks(range(2), ops.all_reduce, inputs)
    assert [each.numpy()[0] for each in inputs] == [1.0, 2.0]


def test_a_loop_may_call() -> None:
    """Each iteration of the loop is a call of its own."""

    @tf.function
    def thrice(values: Any) -> Any:
        return tf.while_loop(
            lambda k, _: k < 3,
            lambda k, both: (k + 1, on_ranks((0, 1), ops.all_reduce, both, inline=True)),
            (tf.constant(0), values),
        )[1]

    found = thrice([tf.constant([1.0]), tf.constant([2.0])])
    assert [each.numpy().tolist() for each in found] == [[12.0], [12.0]]


def test_messages_arrive_with_type_and_shape() -> None:
    sent = [tf.constant([[1, 2]], tf.int8), tf.constant(3.5), tf.zeros([0, 4], tf.complex64)]
    place: dict[str, Any] = {"ranks": (0, 1), "world": "test_ops"}

    @tf.function
    def step(*values: Any) -> Any:
        with tf.device("CPU:1"):
            specs = [tf.TensorSpec([None, 2], tf.int8), tf.TensorSpec(None), tf.TensorSpec([0, 4], tf.complex64)]
            got = ops.receive(0, specs, rank=1, **place)
        assert got[0].shape.as_list() == [None, 2]
        with tf.device("CPU:0"):
            ops.send(values, 1, rank=0, **place)
        return got

    for value, got in zip(sent, step(*sent), strict=True):
        np.testing.assert_array_equal(value, got)


STRINGS = [
    tf.constant([["", "a"], ["b\0c", "d" * 20_000]]),
    tf.constant("alone"),
    tf.zeros([0, 3], tf.string),
]


def test_strings_are_messages() -> None:
    place: dict[str, Any] = {"ranks": (0, 1), "world": "test_ops"}

    @tf.function
    def step(*values: Any) -> Any:
        with tf.device("CPU:0"):
            ops.send(values, 1, rank=0, **place)
        with tf.device("CPU:1"):
            specs = [
                tf.TensorSpec([None, 2], tf.string),
                tf.TensorSpec(None, tf.string),
                tf.TensorSpec(None, tf.string),
            ]
            return ops.receive(0, specs, rank=1, **place)

    for value, got in zip(STRINGS, step(*STRINGS), strict=True):
        assert got.shape == value.shape
        assert got.numpy().tolist() == value.numpy().tolist() if value.shape.rank else got.numpy() == value.numpy()


@pytest.mark.parametrize(
    ("sent", "spec", "expected"),
    [
        (
            tf.constant(["ab"]),
            tf.TensorSpec([2], tf.string),
            "received string [1] from rank 0, expected was string [2]",
        ),
        (tf.constant(["ab"]), tf.TensorSpec([1], tf.uint8), "received packed strings [26] from rank 0, expected was"),
        (tf.constant([7], tf.uint8), tf.TensorSpec([1], tf.string), "received bytes [1,1] from rank 0, expected was"),
    ],
    ids=["shape", "strings for bytes", "bytes for strings"],
)
def test_strings_that_were_not_expected_are_refused(sent: Any, spec: Any, expected: str) -> None:
    def call(value: Any, rank: int, **place: Any) -> Any:
        return ops.send(value, 1, rank=0, **place) if rank == 0 else ops.receive(0, spec, rank=1, **place)

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        on_ranks(range(2), call, [sent, sent])
    assert expected in str(caught.value)


def gradients(call: Callable[..., Any], inputs: Sequence[Any], factors: Sequence[Any]) -> list[Any]:
    """What rank r's `factors[r] * result` of all ranks, summed, gives for each rank's input."""

    @tf.function
    def step(*values: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(values)
            found = on_ranks(range(len(values)), call, values, inline=True)
            loss = tf.add_n([tf.reduce_sum(f * y) for f, y in zip(factors, found, strict=True)])
        return tape.gradient(loss, values)

    return [each.numpy().tolist() for each in step(*inputs)]


X = [tf.constant([1.0, 2.0]), tf.constant([3.0, 5.0])]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x, **place: ops.all_reduce(x, scale=0.5, **place), [[5.5, 5.5], [5.5, 5.5]]),
        (lambda x, **place: ops.all_reduce(x, "mean", **place), [[5.5, 5.5], [5.5, 5.5]]),
        (lambda x, **place: ops.reduce_scatter(x, **place), [[1.0, 10.0], [1.0, 10.0]]),
        (lambda x, **place: ops.reduce_scatter(x, "mean", **place), [[0.5, 5.0], [0.5, 5.0]]),
        (lambda x, **place: ops.all_gather(x, **place), [[11.0, 11.0], [11.0, 11.0]]),
        (lambda x, **place: ops.all_to_all(x, **place), [[1.0, 10.0], [1.0, 10.0]]),
        (lambda x, **place: ops.broadcast(x, root=1, **place), [[0.0, 0.0], [11.0, 11.0]]),
    ],
    ids=["all_reduce", "mean", "reduce_scatter", "reduce_scatter mean", "all_gather", "all_to_all", "broadcast"],
)
def test_gradient_is_the_transpose(call: Callable[..., Any], expected: list[list[float]]) -> None:
    assert gradients(call, X, [1.0, 10.0]) == expected


def test_gradient_of_a_message_comes_back_to_the_sender() -> None:
    place: dict[str, Any] = {"ranks": (0, 1), "world": "test_ops"}

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            with tf.device("CPU:0"):
                token = ops.send(x**2, 1, rank=0, **place)
            with tf.device("CPU:1"):
                y = ops.receive(0, tf.TensorSpec([2]), token=token, rank=1, **place)
            loss = tf.reduce_sum(3.0 * y)
        return tape.gradient(loss, x)

    assert step(X[1]).numpy().tolist() == [18.0, 30.0]


def test_gradient_of_a_maximum_is_refused() -> None:
    def largest(x: Any, **place: Any) -> Any:
        return ops.all_reduce(x, "max", **place)

    with pytest.raises(PlanError) as caught:
        gradients(largest, X, [1.0, 1.0])
    assert re.sub(r"py:\d+", "py:NN", str(caught.value)) == (
        "'max' over ranks has no gradient.\n"
        "  WhaleAllReduce 'step, largest at test_ops.py:NN' is differentiated\n"
        '  Use "sum" or "mean", or tf.stop_gradient around what the reduction is of.'
    )


def test_shapes_are_known_in_graphs() -> None:
    place: dict[str, Any] = {"ranks": (0, 1, 2), "rank": 0, "world": "shapes"}
    with tf.Graph().as_default():
        x, unknown = tf.zeros([6, 4]), tf.compat.v1.placeholder(tf.float32, [None, 4])
        assert ops.all_reduce(x, **place).shape == [6, 4]
        assert ops.broadcast(x, **place).shape == [6, 4]
        assert ops.all_to_all(x, **place).shape == [6, 4]
        assert ops.reduce_scatter(x, **place).shape == [2, 4]
        assert ops.all_gather(x, **place).shape.as_list() == [None, 4]
        assert ops.all_gather(tf.compat.v1.placeholder(tf.float32), **place).shape.rank is None
        assert ops.reduce_scatter(unknown, **place).shape.as_list() == [None, 4]
        assert ops.read_shard(x, 1, 5).shape == [5]
        assert ops.add_contributions([[unknown, tf.zeros([3, 4])]])[0].shape == [3, 4]
        with pytest.raises(
            ValueError, match=r"tensor 0 of 1 has shape \[4\], and 3 members cannot share its dimension 0"
        ):
            ops.reduce_scatter(tf.zeros([4]), **place)


def test_rows_that_do_not_divide_are_refused() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def step(x: Any) -> Any:
        return ops.reduce_scatter([x, x], ranks=(0, 1), rank=1, world="test_ops")

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        step(tf.zeros([3, 2]))
    assert (
        "'WhaleReduceScatter': tensor 0 of 2, float [3,2], on rank 1, was expected to have a dimension 0 that is a "
        "multiple of 2, the number of members"
    ) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "place", "message"),
    [
        (
            1,
            {"rank": 0, "ranks": (1, 2)},
            "rank is 0, ranks are [1, 2] of world 'w'",
        ),
        (1, {"rank": 1, "ranks": (1, 1)}, "ranks [1, 1] of world 'w': each rank may be named once"),
        (1, {"rank": 0, "ranks": ()}, "world 'w' is in this process's memory, which needs its ranks named"),
        (1, {"rank": 0, "ranks": (0, -1)}, "ranks must be from 0 to 4095"),
        (1, {"rank": 0, "ranks": (0, 2**30)}, "ranks must be from 0 to 4095"),
        (
            1,
            {"rank": 0, "ranks": (0, 1), "place": [0, 0, 0]},
            "beside place=, world is 'w', rank is 0, ranks are (0, 1)",
        ),
        ("a", {"rank": 0, "ranks": (0, 1)}, "string"),
    ],
)
def test_calls_that_make_no_sense_are_refused(values: Any, place: dict[str, Any], message: str) -> None:
    with pytest.raises((DeviceError, tf.errors.InvalidArgumentError)) as caught:
        ops.all_reduce(values, world="w", **place)
    assert message in str(caught.value)


def test_a_scale_of_whole_numbers_is_refused() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="float"):
        ops.all_reduce(tf.constant(1), scale=0.5, rank=0, ranks=(0,), world="test_ops")


def test_a_call_needs_to_know_its_place() -> None:
    with pytest.raises(DeviceError) as caught:
        ops.all_reduce(tf.constant(1), world="replicas", rank=0)
    assert str(caught.value) == (
        "world 'replicas' is in this process's memory, where a call says its rank and all ranks.\n"
        "  rank is 0, ranks are None\n"
        "  Give rank= and ranks=, or leave out world= for the world of processes."
    )
    with pytest.raises(DeviceError, match="the world of processes has not been started"):
        ops.barrier()


def test_calls_that_differ_are_refused_on_every_rank() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="do not fit together"):
        on_ranks(range(2), ops.all_reduce, [tf.zeros([3]), tf.zeros([4])])


def test_a_message_of_another_type_is_refused() -> None:
    def call(value: Any, rank: int, **place: Any) -> Any:
        if rank == 0:
            return ops.send(value, 1, rank=rank, **place)
        return ops.receive(0, tf.TensorSpec([2], tf.int32), rank=rank, **place)

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        on_ranks(range(2), call, X)
    expected = "'WhaleReceive' on rank 1 received float32 [2] from rank 0, expected was int32 [2]"
    assert expected in str(caught.value)


def test_a_rank_that_fails_ends_the_others() -> None:
    def call(value: Any, rank: int, **place: Any) -> Any:
        if rank == 1:
            value = tf.debugging.check_numerics(value / 0.0, "rank 1 divides by zero")
        return ops.all_reduce(value, rank=rank, **place)

    with pytest.raises(tf.errors.InvalidArgumentError, match="rank 1 divides by zero"):
        on_ranks(range(4), call, [tf.constant(1.0)] * 4)


def test_a_rank_that_is_missing_is_named() -> None:
    communicator.set_timeout(0.2)
    with pytest.raises(tf.errors.DeadlineExceededError, match=r"all-reduce .* waited 0.2 s for rank 1"):
        tf.function(lambda: ops.all_reduce(1.0, rank=0, ranks=(0, 1), world="late"))()
