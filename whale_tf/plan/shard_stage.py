"""What the split scopes of a step cut: for each stage and size of micro-batch the wishes that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import Line, PlanError, ScopeError
from whale_tf.ir.graph import BOUNDARY_OPS, Graph, Node, Ref
from whale_tf.ir.sharding import Split
from whale_tf.ir.sizes import Sizes
from whale_tf.plan.plan import Plan
from whale_tf.plan.request import Request
from whale_tf.plan.roles import Roles
from whale_tf.plan.shard import PASSING, Propagation, parameter_of, products
from whale_tf.plan.shard_forms import becomes_gradient


@dataclass(frozen=True)
class StageMesh:
    """What is known of a stage that is cut over a mesh.

    Attributes:
      members: how many there are.
      wishes: how the tensors of the step are to be cut, at one size of micro-batch.
      parameters: tensors of the step that are a variable, or made of one.
      gradients: tensors of the step that become a gradient.
      inner: tensors that only functions of the same stage take.
      pinned: tensors that every member has whole.
    """

    members: int
    wishes: Mapping[Ref, Split]
    parameters: frozenset[Ref]
    gradients: frozenset[Ref]
    inner: frozenset[Ref]
    pinned: frozenset[Ref] = frozenset()


@dataclass(frozen=True)
class Cutting:
    """What the stages of a step are cut by.

    Attributes:
      graph: the step, with its changes of state.
      sizes: what planning knows of its operands.
      request: the scopes.
      line_of: the user's line of an operation.
      calls: the functions that its operations refer to, at each size.
    """

    graph: Graph
    roles: Roles
    plan: Plan
    sizes: Sizes
    request: Request
    line_of: Callable[[str], Line]
    calls: Mapping[str, Graph]

    @cached_property
    def parameters(self) -> frozenset[Ref]:
        """The tensors that are a variable, or made of one."""
        refs = (Ref(node.name) for node in self.graph if node.op in PASSING | BOUNDARY_OPS)
        return frozenset(ref for ref in refs if parameter_of(self.graph, ref))

    @cached_property
    def gradients(self) -> frozenset[Ref]:
        """The tensors that become a gradient."""
        return becomes_gradient(self.graph, self.roles.markers)

    @cached_property
    def pinned(self) -> frozenset[Ref]:
        """The tensors that every member has whole."""
        wholes = {scope.key for scope in self.request.wholes}
        return frozenset(Ref(node.name) for node in self.graph if node.scope in wholes)

    @cached_property
    def inner(self) -> frozenset[Ref]:
        """The tensors of micro-batches that only functions of their own stage take."""
        graph, stage_of, roles = self.graph, self.plan.stage_of, self.roles
        leaving = {*graph.outputs, *(Ref(name) for name in graph.effects)}
        for node in graph:
            in_function = roles.per_micro_batch(node.name) and node.name not in roles.markers
            here = stage_of.get(node.name) if in_function else None
            leaving.update(ref for ref in node.inputs if here is None or stage_of.get(ref.node) != here)
        return frozenset(
            Ref(name, index)
            for name in stage_of
            if name in graph
            for index in range(len(graph[name].outputs))
            if Ref(name, index) not in leaving
        )


def mesh_of_stage(cutting: Cutting, graph: Graph, stage: int) -> StageMesh:
    """What a stage's mesh cuts at one size of micro-batch.

    Args:
      graph: the step with the shapes of that size.
    Raises:
      PlanError: what a scope cuts first cannot be cut.
      ScopeError: a scope has nothing to cut.
    """
    layout, plan = cutting.plan.layout, cutting.plan
    own = {name for name, where in plan.stage_of.items() if where == stage}
    once = {node.name for node in graph if not cutting.roles.per_micro_batch(node.name)}
    members = len(layout.mesh_of(0, stage))
    propagation = Propagation(graph, frozenset(own | once), members, cutting.sizes.values.get, cutting.pinned)
    later: list[tuple[Opened, list[Node]]] = []
    for scope in cutting.request.splits:
        if cutting.request.stage_of_scope.get(scope.key, 0) == stage:
            nodes = [node for node in graph if node.scope == scope.key and node.name not in cutting.roles.backward]
            if not _annotate(propagation, scope, nodes, cutting.line_of):
                later.append((scope, nodes))
    for scope, nodes in later:  # parameters come first: they are cut for good
        _annotate_values(propagation, scope, nodes)
    return StageMesh(members, propagation.wishes, cutting.parameters, cutting.gradients, cutting.inner, cutting.pinned)


def _annotate(propagation: Propagation, scope: Opened, nodes: Sequence[Node], line_of: Callable[[str], Line]) -> bool:
    """Cuts the products of a scope in their order, each with what follows from it; whether it has any."""
    first = True
    for node, position, letters in products(propagation, nodes):
        parameter = node.inputs[position]
        if parameter in propagation.wishes:
            first = False
            continue
        rule = propagation.rule(node)
        assert rule is not None  # products gives those with a rule
        name = rule.rule.inputs[position]
        dims = [name.index(letter) for letter in letters] if scope.dim is None else _said(scope, name)
        cuts = [Split(dim) for dim in dims if propagation.divides(parameter, Split(dim))]
        if cuts:
            propagation.wish(parameter, cuts[0])
        elif first:
            raise _undivided(propagation, scope, node, parameter, dims, line_of)
        first = False
    return not first


def _annotate_values(propagation: Propagation, scope: Opened, nodes: Sequence[Node]) -> None:
    """Cuts the first value of a scope that has the dim, and what follows; of one that does not divide nothing is cut.

    Raises:
      ScopeError: the scope names no dim, or no value in it has that dim.
    """
    rank = -1 if scope.dim is None else scope.dim if scope.dim >= 0 else -scope.dim - 1
    values = [
        Ref(node.name)
        for node in nodes
        if node.name in propagation.inside and node.outputs and 0 <= rank < len(node.outputs[0].shape) and node.inputs
    ]
    if scope.dim is None or not values:
        raise ScopeError(
            "there is nothing in split() to cut",
            details=[
                "no product or lookup in it has a parameter"
                + (f", and no value has a dim {scope.dim}" if scope.dim is not None else "")
            ],
            scope=[str(scope)],
            way_out="Put it around a layer with parameters, or name the dim of values, as split(dim=1).",
        )
    dim = scope.dim % len(propagation.graph.type_of(values[0]).shape)
    propagation.wish(values[0], Split(dim))


def _said(scope: Opened, name: str) -> list[int]:
    assert scope.dim is not None
    return [scope.dim % len(name)] if -len(name) <= scope.dim < len(name) else []


def _undivided(
    propagation: Propagation,
    scope: Opened,
    node: Node,
    parameter: Ref,
    dims: Sequence[int],
    line_of: Callable[[str], Line],
) -> PlanError:
    shape, members = propagation.graph.type_of(parameter).shape, propagation.members
    variable = parameter_of(propagation.graph, parameter)
    if not dims:
        details, divisors = [f"'{variable}' {shape} has {len(shape)} dims"], set[int]()
    else:
        details = [f"dim {dim} of '{variable}' {shape} has size {shape[dim]}" for dim in dims]
        sizes = [shape.sizes[dim] for dim in dims]
        divisors = {each for size in sizes for each in range(2, size + 1) if size % each == 0}
    near = sorted(divisors, key=lambda each: abs(each - members))[:3]
    way_out = f"Cut it over {' or '.join(map(str, sorted(near)))} devices, or pad the dim to a multiple of {members}."
    return PlanError(
        f"cannot split '{node.name}' {members} ways",
        details=details,
        at=[line_of(node.name)],
        scope=[str(scope)],
        way_out=way_out if near else "Name a dim of the parameter, or leave dim= out.",
    )
