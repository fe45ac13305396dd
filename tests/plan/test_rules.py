"""Rules: what each one claims is what TensorFlow computes, and each op of the table has been compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from tests.plan.rule_cases import Array, Case, N, case
from tests.plan.rule_cases_elementwise import ELEMENTWISE
from tests.plan.rule_cases_layers import LAYERS
from tests.plan.rule_cases_reductions import REDUCTIONS
from tests.plan.rule_cases_shapes import SHAPES
from tests.plan.rule_checks import rule_for, wrong_letters, wrong_numbers
from whale_tf.errors import InternalError
from whale_tf.ir.graph import ALIAS_OPS, BOUNDARY_OPS, DType, Node, Shape, TensorType
from whale_tf.ir.sharding import Reduction
from whale_tf.plan import rules_elementwise, rules_indices, rules_layers, rules_reductions, rules_shapes
from whale_tf.plan.kinds import Kind, table
from whale_tf.plan.rules import KINDS, Rule, rule_of, shape_operands

CASES: tuple[Case, ...] = (*ELEMENTWISE, *SHAPES, *REDUCTIONS, *LAYERS)
WITH_HANDLES = {"ResourceGather", "ResourceGatherNd", "LookupTableFind", "LookupTableFindV2"}
INTEGERS = (tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.bool)


@pytest.mark.parametrize("given", CASES, ids=[str(given) for given in CASES])
def test_a_rule_says_what_tensorflow_computes(given: Case) -> None:
    rule = rule_for(given)
    assert wrong_letters(given, rule) == []
    assert wrong_numbers(given, rule) == []
    if given.letters:
        assert str(rule) == given.letters


HALF = Fraction(1, 2)
CLAIMS: dict[str, tuple[set[int], set[int], dict[int, Fraction | int]]] = {
    "Mul": ({0, 1}, set(), {}),
    "RealDiv": ({0}, set(), {1: -1}),
    "DivNoNan": ({0}, set(), {1: -1}),
    "MatMul": ({0, 1}, set(), {}),
    "Einsum": ({0, 1}, set(), {}),
    "Conv2DBackpropFilter": ({0, 2}, set(), {}),
    "AddV2": (set(), {0, 1}, {}),
    "Sub": (set(), {0, 1}, {}),
    "AddN": (set(), {0, 1}, {}),
    "BiasAdd": (set(), {0, 1}, {}),
    "ConcatV2": (set(), {0, 1}, {}),
    "Pack": (set(), {0, 1, 2}, {}),
    "SelectV2": (set(), {1, 2}, {}),
    "TensorScatterAdd": (set(), {0, 2}, {}),
    "Sum": ({0}, set(), {}),
    "Mean": ({0}, set(), {}),
    "Max": (set(), set(), {0: 1}),
    "Square": (set(), set(), {0: 2}),
    "Sqrt": (set(), set(), {0: HALF}),
    "Rsqrt": (set(), set(), {0: -HALF}),
    "RsqrtGrad": ({1}, set(), {0: 3}),
    "Relu": (set(), set(), {0: 1}),
    "ReluGrad": ({0}, set(), {1: 0}),
    "Sign": (set(), set(), {0: 0}),
    "L2Loss": (set(), set(), {0: 2}),
    "Pow": (set(), set(), {}),
    "Tanh": (set(), set(), {}),
}


@pytest.mark.parametrize("op", CLAIMS)
def test_what_degrees_and_sums_pass_through(op: str) -> None:
    rule = rule_for(next(given for given in CASES if given.op == op))
    assert (set(rule.linear), set(rule.additive), dict(rule.powers)) == CLAIMS[op]


@pytest.mark.parametrize("exponent", [2.0, 0.5, -1.5, 1 / 3])
def test_a_power_is_one_where_the_exponent_is_known(exponent: float) -> None:
    powers = (case("Pow", N.positive(5, 4), np.full((), exponent), known=known) for known in ((1,), ()))
    assert [rule_for(given).powers for given in powers] == [{0: Fraction(exponent).limit_denominator(12)}, {}]


@pytest.mark.parametrize(
    ("source", "target", "linear", "increasing"),
    [
        (np.float32, tf.float64, True, True),
        (np.int32, tf.float32, True, True),
        (np.float32, tf.int32, False, True),
        (np.bool_, tf.float32, False, True),
        (np.float32, tf.bool, False, False),
        (np.int64, tf.int32, True, False),
        (np.complex64, tf.float32, True, True),
    ],
)
def test_a_cast_is_linear_unless_it_rounds(source: Any, target: Any, linear: bool, increasing: bool) -> None:
    rule = rule_for(case("Cast", N.below(2, 5, 4).astype(source), DstT=target))
    assert (rule.linear == {0}, rule.increasing) == (linear, increasing)


# That the checks can fail.


SUM, SQUARE, RUNNING = case("Sum", N.real(5, 4), [0]), case("Square", N.real(5, 4)), case("Cumsum", N.real(5, 4), 0)
PRODUCT, SUMMED = case("MatMul", N.real(5, 4), N.real(4, 6)), case("AddV2", N.real(5, 4), N.real(4))
SCATTER = case("TensorScatterAdd", N.real(7, 4), N.below(7, 6, 1), N.real(6, 4))
WRONG: list[tuple[str, Case, dict[str, Any]]] = [
    ("an axis that is not whole", RUNNING, {"inputs": ("ab", ""), "outputs": ("ab",)}),
    ("dims in another order", case("Transpose", N.real(5, 5), [1, 0]), {"outputs": ("ab",)}),
    ("another reduction", SUM, {"reduction": Reduction.MAX}),
    ("a mean that is a sum", SUM, {"mean": True}),
    ("a sum that is a mean", case("Mean", N.real(5, 4), [0]), {"mean": False}),
    ("a maximum that is a sum", case("Max", N.real(5, 4), [0]), {"reduction": Reduction.SUM}),
    ("a rounded mean", case("Mean", N.below(9, 5, 4), [0]), {"reduction": Reduction.SUM, "mean": True}),
    ("a term that is counted twice", SCATTER, {"additive": frozenset()}),
    ("a letter too few", PRODUCT, {"inputs": ("ak", ".b")}),
    ("linear in a square", SQUARE, {"linear": frozenset({0})}),
    ("linear in each term of a sum", SUMMED, {"linear": frozenset({0})}),
    ("a sum of factors", PRODUCT, {"additive": frozenset({0, 1})}),
    ("another power", SQUARE, {"powers": {0: Fraction(1)}}),
    ("increasing where it is not", SQUARE, {"increasing": True}),
    ("increasing along an axis", RUNNING, {"increasing": True}),
]


@pytest.mark.parametrize(("given", "changes"), [wrong[1:] for wrong in WRONG], ids=[wrong[0] for wrong in WRONG])
def test_a_wrong_rule_is_noticed(given: Case, changes: dict[str, Any]) -> None:
    rule = replace(rule_for(given), **changes)
    assert wrong_letters(given, rule) + wrong_numbers(given, rule)


# What no case can run: other devices' operations, resources, sizes that are not known.

F32 = DType("float32")
Sizes = tuple[int | None, ...]


def by_hand(op: str, inputs: Sequence[Sizes], outputs: Sequence[Sizes], **attrs: Any) -> Rule | None:
    """The rule of an operation on float32 of these shapes; planning knows no values but those in `values`."""
    values = attrs.pop("values", {})
    node = Node("node", op, attrs=attrs, outputs=tuple(TensorType(F32, Shape(shape)) for shape in outputs))
    types = [TensorType(F32, Shape(shape)) for shape in inputs]
    return rule_of(node, types, [np.asarray(values[at]) if at in values else None for at in range(len(types))])


IMAGE, KERNEL, RESULT = (5, 6, 4, 4), (2, 2, 6, 7), (5, 7, 4, 4)
FIRST = {"data_format": b"NCHW", "ksize": (1, 1, 2, 2), "strides": (1, 1, 2, 2)}
LETTERS: list[tuple[str, list[Sizes], Sizes, dict[str, Any], str]] = [
    ("Conv2D", [IMAGE, KERNEL], RESULT, FIRST, "bc..,..co->bo.."),
    ("Conv2DBackpropInput", [(4,), KERNEL, RESULT], IMAGE, FIRST, ".,..co,bo..->bc.."),
    ("Conv2DBackpropInputV2", [IMAGE, KERNEL, RESULT], IMAGE, FIRST, "bc..,..co,bo..->bc.."),
    ("Conv2DBackpropFilter", [IMAGE, (4,), RESULT], KERNEL, FIRST, "bc..,.,bo..->..co"),
    ("Conv2DBackpropFilterV2", [IMAGE, KERNEL, RESULT], KERNEL, FIRST, "bc..,..co,bo..->..co"),
    ("Conv3DBackpropInput", [(5, 3, 4, 4, 6), (1, 2, 2, 6, 7), (5, 3, 4, 4, 7)], (5, 3, 4, 4, 6), {},
     "b...c,...co,b...o->b...c"),
    ("Conv3DBackpropFilter", [(5, 3, 4, 4, 6), (1, 2, 2, 6, 7), (5, 3, 4, 4, 7)], (1, 2, 2, 6, 7), {},
     "b...c,...co,b...o->...co"),
    ("Conv2D", [(-1, 4, 4, 6), (2, 2, 6, 7)], (-1, 4, 4, 7), {}, "b..c,..co->b..o"),
    ("Conv2D", [(-1, 4, 4, -1), (2, 2, -1, 7)], (-1, 4, 4, 7), {}, "b...,....->b..."),
    ("DepthwiseConv2dNative", [IMAGE, (2, 2, 6, 1)], IMAGE, FIRST, "bc..,..c.->bc.."),
    ("MaxPool", [IMAGE], (5, 6, 2, 2), FIRST, "ab..->ab.."),
    ("AvgPoolGrad", [(4,), (5, 6, 2, 2)], IMAGE, FIRST, ".,ab..->ab.."),
    ("AccumulateNV2", [(5, 4), (5, 4)], (5, 4), {}, "ab,ab->ab"),
    ("AddV2", [(-1, 4), (4,)], (-1, 4), {}, "ab,b->ab"),
    ("AddV2", [(-1, 4), (5, 4)], (5, 4), {}, ".b,.b->.b"),
    ("MatMul", [(-1, 4), (4, 3)], (-1, 3), {}, "ak,kb->ab"),
    ("Softmax", [(-1, 4)], (-1, 4), {}, "A.->A."),
    ("Slice", [(-1, 4), (2,), (2,)], (-1, 4), {}, ".b,.,.->.b"),
    ("Tile", [(-1, 4), (2,)], (-1, 8), {"values": {1: [1, 2]}}, "a.,.->a."),
    ("Tile", [(-1, 4), (2,)], (-1, 4), {}, ".b,.->.b"),
    ("StridedSlice", [(-1, 4), (2,), (2,), (2,)], (-1, 2),
     {"values": {1: [0, 0], 2: [0, 2], 3: [1, 1]}, "end_mask": 1}, "a.,.,.,.->a."),
    ("StridedSlice", [(-1, 4), (1,), (1,), (1,)], (-1, 4), {"values": {1: [0], 2: [8], 3: [1]}}, ".b,.,.,.->.b"),
    ("StridedSlice", [(5, 4, 3), (2,), (2,), (2,)], (5, -1, 3),
     {"values": {3: [1, 1]}, "begin_mask": 1, "end_mask": 1}, "a.c,.,.,.->a.c"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "output", "attrs", "letters"), LETTERS)
def test_letters_where_nothing_can_run(
    op: str, inputs: list[Sizes], output: Sizes, attrs: dict[str, Any], letters: str
) -> None:
    assert str(by_hand(op, inputs, [output], **attrs)) == letters


def test_no_rule_without_a_rank_or_an_axis() -> None:
    unknown: Sizes = Shape.unknown
    assert by_hand("Relu", [unknown], [unknown]) is None
    assert by_hand("AddV2", [(4,), unknown], [unknown]) is None
    assert by_hand("Sum", [(5, 4), (1,)], [(5,)]) is None
    assert by_hand("Transpose", [(5, 4), (2,)], [(4, 5)]) is None
    assert by_hand("GatherNd", [(5, 4), (3, -1)], [unknown]) is None
    assert by_hand("Conv", [(5, 2, 4, 4, 3), (2, 2, 3, 3)], [(5, 2, 4, 4, 3)], batch_dims=2) is None
    assert by_hand("Conv2D", [(5, 1, 4, 4, 4), (4, 1, 2, 2, 4)], [(5, 1, 4, 4, 4)], data_format=b"NCHW_VECT_C") is None
    assert by_hand("MatMul", [(5, 4), (4,)], [(5,)]) is None


@pytest.mark.parametrize("op", ["Reshape", "While", "TensorListStack", "Where", "RandomUniform", "FusedBatchNormV3"])
def test_no_rule_for_what_other_code_follows(op: str) -> None:
    assert by_hand(op, [(5, 4)], [(5, 4)]) is None


def test_the_indices_of_a_resource_can_be_cut() -> None:
    rows, gathered = tf.constant(N.real(7, 4)), N.below(7, 5, 6)
    variable = tf.Variable(rows)
    table_of = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1, 2], [3, 4]), -1)
    calls: dict[str, tuple[Callable[[Array], Any], Sizes, str]] = {
        "ResourceGather": (
            lambda ids: tf.raw_ops.ResourceGather(resource=variable.handle, indices=ids, dtype=rows.dtype),
            (5, 6, 4),
            ",ab->ab.",
        ),
        "ResourceGatherNd": (
            lambda ids: tf.raw_ops.ResourceGatherNd(resource=variable.handle, indices=ids[..., None], dtype=rows.dtype),
            (5, 6, 4),
            ",ab.->ab.",
        ),
        "LookupTableFindV2": (
            lambda ids: tf.raw_ops.LookupTableFindV2(
                table_handle=table_of.resource_handle, keys=tf.constant(ids), default_value=-1
            ),
            (5, 6),
            ",ab,->ab",
        ),
    }
    for op, (gather, shape, letters) in calls.items():
        result = gather(gathered).numpy()
        assert np.array_equal(np.concatenate([gather(gathered[:2]).numpy(), gather(gathered[2:]).numpy()]), result)
        assert result.shape == shape
        handle, keys = TensorType(DType("resource"), Shape.unknown), TensorType(DType("int32"), Shape((5, 6)))
        if op == "ResourceGatherNd":
            keys = TensorType(DType("int32"), Shape((5, 6, 1)))
        rest = [TensorType(F32, Shape())] if op.startswith("Lookup") else []
        node = Node("node", op, outputs=(TensorType(F32, Shape(shape)),))
        assert str(rule_of(node, [handle, keys, *rest], [None] * 3)) == letters


# The table.


def test_each_rule_has_a_case() -> None:
    tried = {given.op for given in CASES} | {op for op, *_ in LETTERS} | WITH_HANDLES
    assert {op for op, kind in KINDS.items() if kind.rule is not None} <= tried


def test_each_op_is_in_one_table() -> None:
    tables: tuple[Mapping[str, Kind], ...] = (rules_elementwise.ELEMENTWISE, rules_shapes.SHAPES, rules_indices.INDICES)
    tables += (rules_reductions.REDUCTIONS, rules_layers.LAYERS)
    ops = [op for each in tables for op in each]
    assert len(ops) == len(set(ops)) == sum(kind.rule is not None for kind in KINDS.values())
    with pytest.raises(InternalError, match="the table of rules has Neg twice"):
        table({"Neg Abs": Kind(), "Neg": Kind()})


def test_each_op_is_one_of_tensorflow_or_of_the_graph() -> None:
    own = BOUNDARY_OPS | ALIAS_OPS
    assert [op for op in KINDS if op not in own and op_def_registry.get(op) is None] == []


def test_shape_operands_are_integers() -> None:
    for op, kind in KINDS.items():
        definition = op_def_registry.get(op)
        for position in kind.shapes:
            argument = definition.input_arg[position]
            allowed = [attr.allowed_values.list.type for attr in definition.attr if attr.name == argument.type_attr]
            types = set(allowed[0]) if allowed and allowed[0] else {argument.type} - {0}  # 0: of any type
            assert types <= {kind.as_datatype_enum for kind in INTEGERS}, f"{op}: {argument.name}"


@pytest.mark.parametrize(
    ("op", "positions"),
    [
        ("Reshape", {1}),
        ("BroadcastTo", {1}),
        ("Fill", {0}),
        ("StridedSlice", {1, 2, 3}),
        ("ConcatV2", {-1}),
        ("TensorListReserve", {0, 1}),
        ("TensorListStack", {1}),
        ("StatelessRandomUniformV2", {0}),
        ("Roll", {2}),
        ("InTopKV2", set()),
        ("Range", set()),
        ("MatMul", set()),
        ("an op that nobody knows", set()),
    ],
)
def test_shape_operands(op: str, positions: set[int]) -> None:
    assert shape_operands(op) == positions
