"""One operation as the members of a mesh run it, with their collectives in this process's memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context, execute  # private; tried with 2.21

from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.sharding import WHOLE, Partial, Reduction, Split, State
from whale_tf.ir.sizes import Array, Sizes
from whale_tf.plan.shard_stage import StageMesh
from whale_tf.rewrite.cut import Key, Source, StageFunction
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.shard import Agreed, Sharded, shard
from whale_tf.run.communicator import load
from whale_tf.run.lower import lower

DEVICE = "/job:localhost/replica:0/task:0/device:CPU:0"
JOINED = {Reduction.SUM: np.add, Reduction.MAX: np.maximum, Reduction.MIN: np.minimum}
KEY, NUMBERS = Key(0, 0, "F"), count()
NO_SIZES = Sizes(Graph({}), 0, 0)


def of_members(
    node: Node,
    kinds: Sequence[TensorType],
    values: Sequence[Array | None],
    given: Sequence[State],
    members: int,
    *,
    wished: Mapping[int, Split] | None = None,
    shared: Collection[int] = (),
) -> Sharded:
    """What a member runs of a node whose operands lie as `given`, and whose results may lie in any way.

    Args:
      values: of operands that are constants.
      shared: operands that something else takes too, as they lie.
    """
    refs = [Ref(f"in{at}") for at in range(len(kinds))]
    nodes, sources = list[Node](), list[Source]()
    for ref, kind, value in zip(refs, kinds, values, strict=True):
        if value is None:
            nodes.append(Node(ref.node, "Argument", attrs={"index": len(sources)}, outputs=(kind,)))
            sources.append(Source("micro", ref))
        else:
            attrs = {"dtype": kind.dtype, "value": tuple(value.ravel().tolist()), "shape": kind.shape}
            nodes.append(Node(ref.node, "Const", attrs=attrs, outputs=(kind,)))
    results = [Ref(node.name, index) for index in range(len(node.outputs))]
    others = [refs[at] for at in shared if values[at] is None]
    graph = Graph.of([*nodes, node.with_(inputs=tuple(refs))], [*results, *others])
    function = StageFunction(KEY, graph, tuple(sources), (*results, *(Ref(f"{ref.node}/passed") for ref in others)), ())
    wishes = {Ref(node.name, index): split for index, split in (wished or {}).items()}
    mesh = StageMesh(members, wishes, frozenset(), frozenset(), frozenset([*refs, *function.results]))
    return shard(function, NO_SIZES, mesh, Agreed(dict(zip(refs, given, strict=True))))


def run_members(function: StageFunction, members: int, arguments: Sequence[Sequence[Array]]) -> list[list[Array]]:
    """What each member gives.

    Args:
      arguments: of each member what it has of the function's tensors; who it is, is added here.
    """
    load()
    nodes, tensors = list[Node](), list[Any]()
    for member in range(members):
        inputs, own = [], iter(arguments[member])
        for at, source in enumerate(function.arguments):
            name = f"a{member}/{at}"
            if source.kind == "place":
                kind = TensorType(DType("int64"), Shape((3,)))
                attrs = {"mesh": tuple(range(members)), "member": member, "number": 0}
                nodes.append(Node(name, "Place", attrs=attrs, outputs=(kind,), device=member))
            elif source.kind == "member":
                kind = TensorType(DType("int32"), Shape())
                attrs = {"dtype": kind.dtype, "value": member}
                nodes.append(Node(name, "Const", attrs=attrs, outputs=(kind,), device=member))
            else:
                tensor = tf.constant(next(own))
                kind = TensorType(DType(tensor.dtype.name), Shape(tensor.shape))
                nodes.append(Node(name, "Outside", attrs={"index": len(tensors)}, outputs=(kind,), device=member))
                tensors.append(tensor)
            inputs.append(Ref(name))
        kinds = tuple(function.graph.type_of(ref) for ref in function.graph.outputs)
        nodes.append(Node(f"c{member}", "Call", tuple(inputs), attrs={"function": b"f"}, outputs=kinds, device=member))
    count_of = len(function.graph.outputs)
    outputs = [Ref(f"c{member}", index) for member in range(members) for index in range(count_of)]
    program = Program(Graph.of(nodes, outputs), {"f": function}, (DEVICE,) * members, inline=False, ordered=False)
    prefix = f"whale_test_mesh_{next(NUMBERS)}"
    lowered = lower(program, {}, prefix, prefix)
    here = context.context()
    for each in (*lowered.functions, lowered.main):
        here.add_function_def(each)
    config = ("config_proto", lowered.config, "executor_type", "")
    taken = [tensors[index] for index in lowered.outside]
    found = execute.execute(lowered.main.signature.name, len(outputs), taken, config, here)
    arrays = [each.numpy() for each in found]
    for each in (*lowered.functions, lowered.main):
        here.remove_function(each.signature.name)
    return [arrays[member * count_of : (member + 1) * count_of] for member in range(members)]


def parts_of(value: Array, state: State, members: int) -> list[Array]:
    """What each member has of a value."""
    if isinstance(state, Split):
        seen = (*value.shape[: state.dim], state.outer, members, -1, *value.shape[state.dim + 1 :])
        pieces = np.moveaxis(value.reshape(seen), state.dim + 1, 0)
        return [piece.reshape(*value.shape[: state.dim], -1, *value.shape[state.dim + 1 :]).copy() for piece in pieces]
    if isinstance(state, Partial):
        # One member has an element, the others what leaves it alone: so nothing is rounded.
        owner = np.random.default_rng(5).integers(0, members, value.shape)
        rest = (
            value.dtype.type(0)
            if state.op is Reduction.SUM
            else value.min()
            if state.op is Reduction.MAX
            else value.max()
        )
        return [np.asarray(np.where(owner == member, value, rest), value.dtype) for member in range(members)]
    return [value] * members


def together(parts: Sequence[Array], state: State) -> Array:
    """The value of which members have these."""
    if isinstance(state, Split):
        first = parts[0].shape
        seen = (*first[: state.dim], state.outer, -1, *first[state.dim + 1 :])
        joined = np.stack([part.reshape(seen) for part in parts], state.dim + 1)
        return joined.reshape(*first[: state.dim], -1, *first[state.dim + 1 :])
    if isinstance(state, Partial):
        return np.asarray(JOINED[state.op].reduce(np.stack(parts)), parts[0].dtype)
    for part in parts[1:]:
        np.testing.assert_array_equal(part, parts[0])
    return parts[0]


def states_of(made: Sharded) -> list[State]:
    """How the results lie."""
    return [made.function.lies.get(index, WHOLE) for index in range(len(made.function.graph.outputs))]


def answers(
    node: Node,
    kinds: Sequence[TensorType],
    operands: Sequence[Array],
    constant: Collection[int],
    given: Sequence[State],
    members: int,
    **lying: Any,
) -> tuple[Sharded, list[Array]]:
    """What the members give together, and the function that they ran.

    Args:
      constant: the positions of operands that are constants.
      lying: as of_members takes it.
    """
    values = [each if at in constant else None for at, each in enumerate(operands)]
    made = of_members(node, kinds, values, given, members, **lying)
    taken = [
        parts_of(each, state, members)
        for each, state, value in zip(operands, given, values, strict=True)
        if value is None
    ]
    found = run_members(made.function, members, list(zip(*taken, strict=True)) or [()] * members)
    return made, [
        together(parts, state) for parts, state in zip(zip(*found, strict=True), states_of(made), strict=True)
    ]
