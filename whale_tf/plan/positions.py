"""Numbers that say where examples are: each part counts them from its own first example.

    boolean_mask(h, m)    i = Where(m);  GatherV2(h, i)      a part finds its own rows, whatever their true numbers
    top_k's gradient      ScatterNd(row * k + i, g)          row numbers from 0 on in each part, for its own rows

Such numbers are Split(0, 1, a): the true ones are larger by a for each example before the part. Sums and multiples of
them are as well; for all else `Use.shift` makes them true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from whale_tf.ir.graph import Node
from whale_tf.ir.sharding import SUMS, WHOLE, Extent, Split, Value
from whale_tf.ir.sizes import uniform
from whale_tf.plan.local import INTEGERS, Answer, Given, Local, Operation, Use, by_letters, piece_of
from whale_tf.plan.rows import sizes_of_rows
from whale_tf.plan.rules import Rule, rule_of


def by_rule(operation: Operation) -> Local | str:
    """By the rule of the operation's kind."""
    node, inputs = operation.node, operation.inputs
    rule = rule_of(node, [given.kind for given in inputs], [given.number for given in inputs])
    if rule is None:
        return f"no rule says how {node.op} depends on its examples"
    cut = any(given.cut for given in inputs)
    if any(given.cut and given.cut.ahead for given in inputs) or (
        cut and node.op in SUMMED | {"Pack"} and _counts(inputs)
    ):
        return counted(operation, rule)
    return by_letters(operation, rule)


def counted(operation: Operation, rule: Rule) -> Local | str:
    """Operands that count positions: sums and multiples of them do as well; for all else they become true numbers."""
    inputs, node = operation.inputs, operation.node
    data = [given for position, given in enumerate(inputs) if position not in rule.shapes]
    ahead = _ahead(node, data) if node.outputs[0].dtype in INTEGERS else None
    bare = tuple(replace(given, value=Value(given.cut.bare)) if given.cut is not None else given for given in inputs)
    found = by_letters(replace(operation, inputs=bare), rule)
    if isinstance(found, str):
        return found
    if ahead is None:
        uses = {
            position: Use(shift=_shift(given, given.cut))
            for position, given in enumerate(inputs)
            if given.cut is not None and given.cut.ahead
        }
        return replace(found, uses={**found.uses, **uses})
    prefixes = {
        position: use._replace(prefix=True)
        for position, use in found.uses.items()
        if use.piece and not use.alike and progression(inputs[position])
    }
    results = tuple(
        replace(value, state=replace(value.state, ahead=ahead.unit, column=ahead.column))
        if isinstance(value.state, Split)
        else value
        for value in found.results
    )
    return Local(results, {**found.uses, **prefixes})


def _shift(given: Given, cut: Split) -> tuple[int, ...]:
    """What is added for each example to make the numbers true: of one column, or of all."""
    return (cut.ahead, *(0,) * ((given.kind.shape[-1] or 1) - 1)) if cut.column else (cut.ahead,)


class Ahead(NamedTuple):
    """By how much numbers are larger for each example: all of them, or only column 0 of the last dim."""

    unit: int
    column: bool = False


SUMMED = frozenset({"AddV2", "Add", "AddN", "Sub"})
KEPT = frozenset({"Transpose", "Slice", "StridedSlice", "Pack", "ConcatV2", "Split", "Unpack"})


def _counts(inputs: Sequence[Given]) -> bool:
    return any(given.cut is None and progression(given) for given in inputs)


def _ahead(node: Node, data: Sequence[Given]) -> Ahead | None:
    """How much a result is ahead for each example; None if its numbers are not so alike."""
    units = [given.cut.ahead if given.cut is not None else progression(given) for given in data]
    columns = {given.cut.column for given in data if given.cut is not None and given.cut.ahead}
    column = columns == {True}
    if len(columns) > 1:
        return None
    if node.op in SUMMED and not column:
        return Ahead(units[0] - units[1] if node.op == "Sub" else sum(units))
    if node.op == "Mul" and not column:
        factors = [uniform(given.number) for given in data if given.number is not None]
        return Ahead(sum(units) * int(factors[0])) if len(factors) == 1 and factors[0] is not None else None
    last = node.attrs.get("axis") in (-1, len(node.outputs[0].shape) - 1)
    if node.op == "Pack" and last and not column and units[0] and not any(units[1:]):
        return Ahead(units[0], column=True)
    if node.op in ("Identity", "Cast") or (node.op in KEPT and not column):
        return Ahead(units[0], column) if len(set(units)) == 1 else None
    return None


def progression(given: Given) -> int:
    """By how much each example's numbers of a constant are larger than those of the one before; 0 if they are not."""
    if given.number is None or given.kind.dtype not in INTEGERS or not given.following or len(given.following) != 1:
        return 0
    (dim,) = given.following
    if not given.proportional(dim, 1):
        return 0
    rows = np.moveaxis(given.number, dim, 0).astype(np.int64)
    rows = rows.reshape((given.batch, -1))
    steps = rows[1:] - rows[:-1]
    return int(steps.flat[0]) if steps.size and bool((steps == steps.flat[0]).all()) else 0


def columns_ahead(given: Given) -> int:
    """Of constant positions in several dims: by how much their first numbers are larger for each example, if the
    others are the same for all; else 0.
    """
    if given.number is None or given.kind.dtype not in INTEGERS or given.following != (0,):
        return 0
    if not given.proportional(0, 1) or len(given.kind.shape) < 2:
        return 0
    rows = given.number.astype(np.int64).reshape((given.batch, -1, given.kind.shape[-1] or 1))
    steps = rows[1:] - rows[:-1]
    unit = int(steps[0, 0, 0]) if steps.size else 0
    return unit if bool((steps[..., 0] == unit).all()) and not steps[..., 1:].any() else 0


def where(operation: Operation) -> Answer:
    """The positions of what is true, counted from the part's first example."""
    given = operation.inputs[0]
    if given.cut != Split(0) or not given.proportional(0, 1):
        return "Where chooses among examples and other dims at once"
    unit = (given.kind.shape[0] or 0) // given.batch
    return Local((Value(Split(0, 1, unit, column=len(given.kind.shape) > 1)),))


# For each operation that goes by positions in dim 0: where it takes them, and what they are positions in.
POSITIONS: Mapping[str, int] = MappingProxyType(
    {"GatherV2": 1, "GatherNd": 1, "ScatterNd": 0}
    | {f"UnsortedSegment{kind}": 1 for kind in ("Sum", "Max", "Min", "Prod")}
    | {f"TensorScatter{kind}": 1 for kind in ("Add", "Sub", "Max", "Min", "Update")}
)


def by_position(operation: Operation) -> Answer:
    """Positions that a part counts from its first example, in its own rows."""
    node, position = operation.node, POSITIONS[operation.node.op]
    given = operation.inputs[position]
    if node.op == "GatherV2" and isinstance(operation.inputs[0].value.state, Extent) and given.number is not None:
        return sizes_of_rows(operation, [int(each) for each in given.number.ravel()])
    several = node.op in ("GatherNd", "ScatterNd") or node.op.startswith("TensorScatter")
    unit = given.cut.ahead if given.cut is not None else columns_ahead(given) if several else progression(given)
    if unit <= 0:
        return by_rule(operation)
    cut = given.cut.bare if given.cut is not None else Split((given.following or (0,))[0])
    uses = {} if given.cut is not None else {position: Use(cut, prefix=True)}
    column = given.cut is None or given.cut.column or given.kind.shape[-1:] == (1,)
    if several and (not column or cut.dim == len(given.kind.shape) - 1):
        return by_rule(operation)
    if not several and given.cut is not None and given.cut.column:
        return by_rule(operation)
    rows = unit * operation.batch
    if node.op.startswith("Gather"):
        answer = _gathered(operation, cut, rows)
    elif node.op.startswith("Unsorted") or node.op == "ScatterNd":
        answer = _scattered(operation, cut, rows)
    else:
        answer = _scattered(operation, cut, rows) if operation.inputs[0].cut == Split(0) else by_rule(operation)
    return replace(answer, uses={**answer.uses, **uses}) if isinstance(answer, Local) else answer


def of_sparse(operation: Operation) -> Answer:
    """SparseTensorDenseMatMul, of a sparse matrix with a row for each example: the part's rows, or a sum over them."""
    indices, values, shape, dense = operation.inputs
    unit = indices.cut.ahead if indices.cut is not None and indices.cut.column else 0
    if unit != 1 or values.cut != Split(0) or not shape.whole:
        return by_rule(operation)
    degree = values.value.degree
    if not operation.node.attrs.get("adjoint_a", False):
        rows = dense.whole and dense.following == () and operation.following[0] == (0,)
        return Local((Value(Split(0), degree),), {3: Use(power=-dense.value.degree)}) if rows else by_rule(operation)
    if dense.cut != Split(0) or operation.following[0] != ():
        return by_rule(operation)
    return Local((Value(SUMS, degree + dense.value.degree),))


def _gathered(operation: Operation, cut: Split, rows: int) -> Answer:
    node, params = operation.node, operation.inputs[0]
    axis = operation.inputs[2].number if node.op == "GatherV2" else 0
    if axis is None or int(axis) or node.attrs.get("batch_dims", 0):
        return by_rule(operation)
    if params.cut is None or params.cut.dim or params.cut.outer > 1 or params.kind.shape[0] != rows:
        return by_rule(operation)
    return Local((Value(Split(cut.dim, cut.outer, params.cut.ahead), params.value.degree),))


def _scattered(operation: Operation, cut: Split, rows: int) -> Answer:
    node = operation.node
    position = {"ScatterNd": 1, "Unsorted": 0}.get("ScatterNd" if node.op == "ScatterNd" else node.op[:8], 2)
    updates = operation.inputs[position]
    wanted = cut
    use = piece_of(updates, wanted) if updates.value == Value(WHOLE) and not updates.ragged else None
    if updates.cut != wanted and use is None:
        return by_rule(operation)
    if node.outputs[0].shape[:1] != (rows,) or operation.following[0] != (0,):
        return by_rule(operation)
    return Local((Value(Split(0), updates.value.degree),), {} if use is None else {position: use})
