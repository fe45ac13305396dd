"""Forms: whatever way operands lie, members give together what TensorFlow gives whole."""

from __future__ import annotations

import random

import pytest

from tests.plan.rule_cases import Case
from tests.plan.rule_checks import all_same, node_of, precision_of, run
from tests.plan.test_rules import CASES
from tests.rewrite.mesh import answers
from whale_tf.ir.graph import Shape
from whale_tf.ir.sharding import SUMS, WHOLE, Split, State
from whale_tf.plan.kinds import WHOLE_DIM, TypedNode
from whale_tf.plan.rules import KINDS
from whale_tf.plan.shard_forms import SAME_FOR_ALL, SHAPES_OF_RESULTS
from whale_tf.plan.shard_rules import REDUCED, mesh_rule

# Types that members can send to one another.
SENT = REDUCED | {"bool", "int8", "uint8", "int16", "complex64", "complex128"}
# Svd leaves results unset that nobody asked for; TensorFlow's optimizer takes a histogram for an elementwise operation.
LEFT_OUT = {"Svd", "HistogramFixedWidth"}
TOLD = SAME_FOR_ALL | SHAPES_OF_RESULTS.keys()


def can_be_sent(given: Case) -> bool:
    if given.op in LEFT_OUT or any(each.dtype.kind in "OSU" for each in given.inputs):
        return False
    node, kinds, _ = node_of(given)
    return all(each.dtype in SENT for each in (*kinds, *node.outputs))


RUN = [given for given in CASES if can_be_sent(given)]


def sorted_out(cases: list[Case]) -> list[object]:
    """The cases; those whose operands say no shapes and axes are long."""
    return [pytest.param(given, id=str(given), marks=() if given.op in TOLD else pytest.mark.long) for given in cases]


def known(given: Case) -> list[int]:
    _, _, values = node_of(given)
    return [at for at, value in enumerate(values) if value is not None]


@pytest.mark.parametrize("given", sorted_out(RUN))
def test_members_cut_each_letter_of_a_rule(given: Case) -> None:
    node, kinds, values = node_of(given)
    found = mesh_rule(TypedNode(node, tuple(kinds), tuple(values)))
    assert found is not None
    rule, whole = found.rule, run(given, given.inputs)
    sizes: dict[str, int] = {}
    for name, kind in [*zip(rule.inputs, kinds, strict=True), *zip(rule.outputs, node.outputs, strict=True)]:
        sizes |= {letter: size for letter, size in zip(name, kind.shape.sizes, strict=True) if letter != WHOLE_DIM}
    for letter, size in sizes.items():
        members = next((each for each in range(2, size + 1) if size % each == 0), 0)
        if members:
            states = [
                Split(name.index(letter)) if letter in name and value is None else WHOLE
                for name, value in zip(rule.inputs, values, strict=True)
            ]
            wished = {index: Split(name.index(letter)) for index, name in enumerate(rule.outputs) if letter in name}
            _, together = answers(node, kinds, given.inputs, known(given), states, members, wished=wished)
            assert all_same(together, whole, precision_of(given, whole)), f"{rule}: {letter} over {members}"


@pytest.mark.parametrize("given", sorted_out(RUN))
def test_members_take_operands_as_they_lie(given: Case) -> None:
    node, kinds, _ = node_of(given)
    constant, whole, drawn = known(given), run(given, given.inputs), random.Random(str(given))
    for _ in range(3):
        members = drawn.choice([2, 2, 3])
        states: list[State] = []
        for at, kind in enumerate(kinds):
            lying: list[State] = [*splits(kind.shape, members), *[SUMS] * (2 * (kind.dtype in REDUCED))]
            states.append(drawn.choice([WHOLE, *lying]) if at not in constant else WHOLE)
        wishes = {index: splits(kind.shape, members) for index, kind in enumerate(node.outputs)}
        wished = {index: drawn.choice(ways) for index, ways in wishes.items() if ways and drawn.random() < 0.6}
        shared = [at for at in range(len(kinds)) if drawn.random() < 0.25]
        how = {"wished": wished, "shared": shared}
        _, together = answers(node, kinds, given.inputs, constant, states, members, **how)
        assert all_same(together[: len(whole)], whole, precision_of(given, whole)), f"{members}: {states} {how}"


def splits(shape: Shape, members: int) -> list[State]:
    return [
        Split(dim, outer)
        for dim, size in enumerate(shape.sizes)
        for outer in range(1, size + 1)
        if size % (outer * members) == 0
    ]


def test_what_is_told_of_shapes_is_of_operations_of_the_table() -> None:
    """A name that is misspelled would leave an operation whole."""
    assert sorted(op for op in TOLD if op not in KINDS) == []
    assert not SAME_FOR_ALL & SHAPES_OF_RESULTS.keys()
