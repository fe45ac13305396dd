"""Where each variable is up to date after a step: in every process, or only where it is used.

    process 0: stage 0    uses w0 and its slots   ─▶ assigns w0, m0, v0, and the rate
    process 1: stage 1    uses w1 and its slots   ─▶ assigns w1, m1, v1, and the rate

Sending every new value and slot to processes that never read them would cost as much as the gradients, and giant models
would not fit. So what follows from gradients stays where it is used. Numbers (a step's count, a rate, a loss scale) and
what the forward writes (metrics, moving averages) are small: they are up to date everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain

from whale_tf.ir.graph import ALIAS_OPS, BOUNDARY_OPS, Graph, Node, Shape
from whale_tf.plan.layout import HOST_SEAT, Layout
from whale_tf.plan.roles import Roles, variable_of
from whale_tf.plan.states import FREE


@dataclass(frozen=True)
class VariableLayout:
    """Where one variable is.

    Attributes:
      owner: the seats that reduce its gradient and compute its update, one for each kind of group; none if it has no
        gradient.
      everywhere: whether it is up to date in every process after a step that changes it, or only where it is used.
      returned: whether the step returns it as it was, which every process does.
      stages: the stages of every replica that read it.
      seats: for each kind of group the seats besides, that read it or compute its new value.
    """

    owner: tuple[int, ...] = ()
    everywhere: bool = True
    returned: bool = False
    stages: tuple[int, ...] = ()
    seats: tuple[tuple[int, ...], ...] = ()

    def holders(self, layout: Layout, group: int) -> tuple[int, ...]:
        """The processes of a group of replicas where it is up to date after a step that changes it."""
        return layout.groups.processes[group] if self.everywhere else self.users(layout, group)

    def users(self, layout: Layout, group: int) -> tuple[int, ...]:
        """The processes of a group of replicas that read it, or compute its new value."""
        groups = layout.groups
        if self.returned or not self.seats:
            return groups.processes[group]
        used = [layout.mesh_of(replica, stage) for replica in groups.members[group] for stage in self.stages]
        devices = list(chain.from_iterable(used))
        devices += [layout.device_at(group, seat) for seat in self.seats[groups.kind_of(group)]]
        return tuple(sorted({layout.process_of(device) for device in devices}))


def copyable(graph: Graph, roles: Roles, name: str) -> bool:
    """Whether any device may compute a node for itself: it is stateless and depends on no example."""
    node = graph[name]
    return not node.stateful and node.op not in BOUNDARY_OPS | ALIAS_OPS and roles.phase[name] == FREE


def lay_out_variables(
    graph: Graph,
    roles: Roles,
    stage_of: Mapping[str, int],
    seat_of: Mapping[str, tuple[int, ...]],
    layout: Layout,
    owner: Mapping[str, tuple[int, ...]],
    refusable: Collection[str],
) -> dict[str, VariableLayout]:
    """The layout of every variable, in the order of the graph.

    Args:
      seat_of: where what runs once per step runs, for each kind of group.
      owner: the seats that own each trained variable.
      refusable: variables of which a read can be refused in a process where they are not up to date.
    """
    variables = {variable_of(node): node for node in graph if node.op == "Variable"}
    names = dict.fromkeys([*variables, *(variable_of(node) for node in graph if node.op == "Write"), *owner])
    updated = {variable_of(node) for node in graph if node.op == "Write" and roles.per_step(node.name)}
    uses = _Uses(graph, roles, stage_of, seat_of, len(layout.groups.sizes)).of_variables()
    found: dict[str, VariableLayout] = {}
    for name in names:
        use = uses.get(name, _Use([set() for _ in layout.groups.sizes]))
        kept = len(layout.hosts) > 1 and name in updated and name in refusable and not use.returned
        found[name] = VariableLayout(
            owner=owner.get(name, ()),
            everywhere=not (kept and name in variables and _has_dims(variables[name].outputs[0].shape)),
            returned=use.returned,
            stages=tuple(sorted(use.stages)),
            seats=tuple(tuple(sorted(of_kind)) for of_kind in use.seats),
        )
    return found


def _has_dims(shape: Shape) -> bool:
    """Of no number has; and to be gathered, it must have a size that all processes know."""
    return len(shape) > 0 and shape.known


@dataclass
class _Use:
    """Who uses a variable: stages, seats for each kind of group, and whether the step returns it as it was."""

    seats: list[set[int]]
    stages: set[int] = field(default_factory=set)
    returned: bool = False


@dataclass
class _Uses:
    """Follows variables through what every device computes for itself, to those who use it."""

    graph: Graph
    roles: Roles
    stage_of: Mapping[str, int]
    seat_of: Mapping[str, tuple[int, ...]]
    kinds: int

    def of_variables(self) -> dict[str, _Use]:
        """The uses of every variable that is read or written."""
        found: dict[str, _Use] = {}
        holds: dict[str, frozenset[str]] = {}  # the variables that a node reads if a device computes it for itself
        for node in self.graph:
            taken = frozenset[str]().union(*(holds.get(ref.node, frozenset()) for ref in node.inputs))
            if node.op == "Variable":
                holds[node.name] = frozenset({variable_of(node)})
            elif self._passes(node):
                holds[node.name] = taken
            else:
                for name in taken:
                    self._note(found, name, node)
            if node.op == "Write":
                self._note(found, variable_of(node), node)
        for ref in self.graph.outputs:
            for name in holds.get(ref.node, ()):
                found.setdefault(name, self._nothing()).returned = True
        return found

    def _passes(self, node: Node) -> bool:
        """Whether those who take what a node gives read for themselves what it is made of."""
        if node.name in self.roles.markers:
            return False
        return node.op in ALIAS_OPS or node.op == "Piece" or copyable(self.graph, self.roles, node.name)

    def _nothing(self) -> _Use:
        return _Use([set() for _ in range(self.kinds)])

    def _note(self, found: dict[str, _Use], name: str, node: Node) -> None:
        use = found.setdefault(name, self._nothing())
        if self.roles.per_micro_batch(node.name):
            use.stages.add(self.stage_of.get(node.name, 0))
            return
        for kind, seats in enumerate(use.seats):
            of_node = self.seat_of.get(node.name, (HOST_SEAT,))
            seats.add(of_node[kind] if kind < len(of_node) else HOST_SEAT)
