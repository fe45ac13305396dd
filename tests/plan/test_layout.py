"""Layouts: how many examples each micro-batch gets, and what cannot be cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from whale_tf.errors import BatchError
from whale_tf.plan.layout import Layout, cut_batch, fit_batch

COUNTS = st.integers(1, 9)
SHARES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def fractions(shares: Sequence[int]) -> list[float]:
    return [share / sum(shares) for share in shares]


def of_shares(shares: Sequence[float]) -> Layout:
    """One device for each replica."""
    meshes = tuple(((replica,),) for replica in range(len(shares)))
    return Layout(tuple(shares), ("",), meshes, ("CPU:0",) * len(shares))


@given(examples=st.integers(1, 200), shares=SHARES, micro_batches=COUNTS)
def test_sizes_sum_to_the_batch_and_none_is_empty(examples: int, shares: list[int], micro_batches: int) -> None:
    layout, sizes = fit_batch(of_shares(fractions(shares)), micro_batches, examples, ["x"])
    assert sum(chain.from_iterable(sizes)) == examples
    assert min(chain.from_iterable(sizes)) >= 1
    assert layout.replicas == len(sizes)
    assert sum(layout.shares) == pytest.approx(1)
    if (len(sizes), len(sizes[0])) != (len(shares), micro_batches):
        # Rounding moves a replica's part by less than one example to either side.
        assert examples * min(fractions(shares)) < micro_batches + 1


@given(examples=st.integers(1, 200), replicas=COUNTS, micro_batches=COUNTS)
def test_sizes_differ_by_at_most_one_for_equal_shares(examples: int, replicas: int, micro_batches: int) -> None:
    assume(examples >= replicas * micro_batches)
    flat = list(chain.from_iterable(cut_batch(examples, [1 / replicas] * replicas, micro_batches)))
    assert max(flat) - min(flat) <= 1


@given(examples=st.integers(50, 200), shares=SHARES)
def test_a_replica_gets_its_share_of_the_examples(examples: int, shares: list[int]) -> None:
    sizes = cut_batch(examples, fractions(shares), 1)
    for row, fraction in zip(sizes, fractions(shares), strict=True):
        assert abs(sum(row) - fraction * examples) <= 1


def test_the_larger_micro_batches_go_first() -> None:
    assert cut_batch(10, [0.5, 0.5], 2) == ((3, 2), (3, 2))
    assert cut_batch(11, [0.5, 0.5], 2) == ((3, 3), (3, 2))


def test_one_part_may_do_without_a_batch() -> None:
    layout = of_shares([1.0])
    assert fit_batch(layout, 1, 0) == (layout, ((0,),))


@pytest.mark.parametrize(("replicas", "micro_batches"), [(1, 1), (2, 3)])
def test_a_batch_without_examples_is_refused(replicas: int, micro_batches: int) -> None:
    with pytest.raises(BatchError) as refused:
        fit_batch(of_shares([1 / replicas] * replicas), micro_batches, 0, ["x", "y"])
    assert str(refused.value) == (
        "the batch has no example.\n"
        "  x has dim 0 = 0\n"
        "  y has dim 0 = 0\n"
        "  Give one example or more: a batch with fewer examples than parts runs with fewer parts."
    )


def test_parts_without_a_batch_are_refused() -> None:
    with pytest.raises(BatchError) as refused:
        fit_batch(of_shares([1.0]), 2, 0)
    assert str(refused.value) == (
        "no input carries a batch that could be cut.\n"
        "  the step has 1 replica x 2 micro-batches, and no argument that is cut is a tensor of rank 1 or more\n"
        "  Pass the batch to the step as tensors or arrays."
    )
