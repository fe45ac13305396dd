"""Outputs that consist of several tensors come back as the step returned them, or are refused where they were cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import Source, batch

WAY_OUT = (
    "Return dense tensors whose dim 0 is the batch, as to_tensor() and tf.sparse.to_dense() give, "
    "or use one replica and micro_batches=1."
)


class Scores(tf.experimental.ExtensionType):  # type: ignore[misc]  # TensorFlow has no types
    """Per-example and whole values together, and a number of Python."""

    of_examples: tf.Tensor
    count: int
    more: tuple[tf.Tensor, ...]


class Rows(tf.experimental.ExtensionType):  # type: ignore[misc]  # TensorFlow has no types
    """A ragged tensor inside another composite one."""

    rows: tf.RaggedTensor


def ragged(x: tf.Tensor) -> Any:
    return {"rows": [tf.RaggedTensor.from_tensor(x, padding=0.0)], "none": None}


def sparse(x: tf.Tensor) -> Any:
    return tf.sparse.from_dense(x), tf.reduce_mean(x)


def ragged_inside(x: tf.Tensor) -> Any:
    return Rows(tf.RaggedTensor.from_tensor(x))


def slices(x: tf.Tensor) -> Any:
    return tf.IndexedSlices(2 * x, tf.range(tf.shape(x)[0]), None)


def scores(x: tf.Tensor) -> Any:
    return Scores(2 * x, 3, (x[:, 0], tf.reduce_mean(x)))


def check_same(got: Any, want: Any) -> None:
    tf.nest.assert_same_structure(got, want, expand_composites=True)
    leaves = (tf.nest.flatten(each, expand_composites=True) for each in (got, want))
    for one, other in zip(*leaves, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(4)


@pytest.mark.parametrize("outputs", [ragged, sparse, ragged_inside, slices, scores])
def test_composite_outputs_of_one_part_are_those_of_one_device(outputs: Callable[[tf.Tensor], Any]) -> None:
    check_same(whale.function(outputs)(batch()), tf.function(outputs)(batch()))


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_tensors_of_an_extension_type_are_merged_each_by_itself(micro_batches: int) -> None:
    @whale.function(micro_batches=micro_batches)
    def step(x: Any) -> Any:
        with whale.replica(2):
            return scores(x)

    check_same(step(batch(14)), scores(tf.constant(batch(14))))
    assert step(batch(14)).count == 3


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_gradient_of_a_table_stays_slices(micro_batches: int) -> None:
    table = tf.Variable(np.ones([9, 2], np.float32))
    words = np.array([1, 3, 3, 8, 0, 1, 1, 2], np.int32)

    def plain(words: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.gather(table, words) ** 2)
        return tape.gradient(loss, table)

    got = whale.function(micro_batches=micro_batches)(plain)(words)
    assert isinstance(got, tf.IndexedSlices)
    np.testing.assert_allclose(tf.convert_to_tensor(got), tf.convert_to_tensor(plain(tf.constant(words))), rtol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [(ragged, "RaggedTensor"), (sparse, "SparseTensor"), (ragged_inside, "RaggedTensor"), (slices, "IndexedSlices")],
)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_what_cannot_be_put_together_is_refused(
    outputs: Callable[[tf.Tensor], Any], kind: str, micro_batches: int
) -> None:
    @whale.function(micro_batches=micro_batches)
    def step(x: Any) -> Any:
        with whale.replica(2):
            return outputs(x)

    with pytest.raises(whale.PlanError) as refused:
        step(batch())
    rule, numbers, line, way_out = str(refused.value).split("\n")
    assert rule == f"the step returns {kind} of examples, which cannot be put together from parts."
    assert numbers.startswith(f"  the tensors of a {kind} are '")
    assert line == f"  at {Source(outputs).at('return', function=outputs.__name__)}"
    assert way_out == f"  {WAY_OUT}"
