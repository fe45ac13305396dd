"""The program of a step before it is bound to devices: its functions depend on no number of replicas or processes.

There is one of each for each size of micro-batch. What each group of replicas makes of it is for `bind`: the
functions' calls, the values that go from one to another, the sums of gradients, and the update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from whale_tf.ir.functions import functions_of
from whale_tf.ir.graph import ALIAS_OPS, BOUNDARY_OPS, Graph, Node, Ref
from whale_tf.ir.sharding import State
from whale_tf.plan.communication import Channel, with_communication
from whale_tf.plan.grid import Grid, pattern_of
from whale_tf.plan.grids import Grids
from whale_tf.plan.plan import Plan
from whale_tf.plan.residency import copyable
from whale_tf.plan.roles import Roles
from whale_tf.plan.states import FREE
from whale_tf.rewrite.cut import Key, StageFunction

Functions = Mapping[Key, StageFunction]

# TensorFlow puts all that handles one of these on one device, and no message carries one.
NO_VALUES = frozenset({"resource", "variant"})

# Of all inlined calls of a program together: so many take 0.1 to 0.2 s longer to build, on two cores of AMD EPYC.
INLINED_NODES = 2000

# These fail for the sake of what the error says, of which the name of the call is a part: an inlined one has none.
CHECKS = frozenset({"Assert", "CheckNumerics", "CheckNumericsV2"})


@dataclass(frozen=True)
class StepProgram:
    """A step under a plan.

    Attributes:
      graph: the step at the global batch, with its changes of state.
      variants: its stage functions at each size of micro-batch.
      fed: whether a process gets its own replicas' examples only, in the place of the global batch.
    """

    graph: Graph
    roles: Roles
    plan: Plan
    variants: Mapping[int, Functions]
    fed: bool = False

    def name_of(self, key: Key, size: int) -> str:
        """The name of a stage function for one size of micro-batch."""
        return f"{key}/{size}" if len(self.variants) > 1 else str(key)

    @cached_property
    def functions(self) -> dict[str, StageFunction]:
        """All stage functions by name."""
        return {
            self.name_of(function.key, size): function
            for size, variant in self.variants.items()
            for function in variant.values()
        }

    @cached_property
    def sums_lie(self) -> dict[str, State]:
        """How gradients' sums lie over the members of their stage, by marker; one that is not listed is whole."""
        return {
            marker: function.lies[index]
            for function in self.functions.values()
            for index, marker in enumerate(function.sums, len(function.results))
            if index in function.lies
        }

    @cached_property
    def plain(self) -> bool:
        """Whether the stage functions take and give plain values only: what else there is stays where it was made.

        A table is used on the host even where a replica is elsewhere, which only a call keeps apart; and TensorFlow
        puts all that handles one list of a loop on one device, its forward and backward.
        """
        passed = (
            graph.type_of(ref) for graph in (each.graph for each in self.functions.values()) for ref in _passed(graph)
        )
        return all(kind.dtype not in NO_VALUES for kind in passed)

    @property
    def ordered(self) -> bool:
        """Whether a device's calls are to keep the schedule's order; with one micro-batch the data gives it."""
        return self.plan.micro_batches > 1 or not self.plain

    def inlines(self, calls: Mapping[str, int]) -> bool:
        """Whether TensorFlow may inline the calls of a program: where they keep an order, only few and small ones.

        A step then takes some microseconds less for each call, and building it takes longer for each node.

        Args:
          calls: how often each stage function is called, by name.
        """
        if not self.ordered or not self.plain:
            return self.plain
        graphs = {name: self.functions[name].graph for name in calls}
        if any(functions_of(node) or node.op in CHECKS for graph in graphs.values() for node in graph):
            return False  # with the bodies of loops they are not small; and a check is to tell its micro-batch
        return sum(count * len(graphs[name]) for name, count in calls.items()) <= INLINED_NODES

    @property
    def phases(self) -> tuple[int, ...]:
        """The phases in which micro-batches go through stages, in order."""
        return tuple(sorted({key.phase for key in self.by_key}))

    def has_backward(self, phase: int) -> bool:
        """Whether a phase has actions besides forwards."""
        return any(key.phase == phase and key.kind != "F" for key in self.by_key)

    @cached_property
    def communication(self) -> Mapping[int, Grids]:
        """The plan's grids with what is sent, received and reduced, by phase.

        Raises:
          ScheduleError: a grid that was written by hand has other communication, or has it at the wrong place.
        """
        return {
            phase: Grids(tuple(with_communication(grid, self._channels(phase), self._reduced(phase)) for grid in grids))
            for phase in self.phases
            for grids in [(self.plan.grids if self.has_backward(phase) else self.plan.forward_grids).by_class]
        }

    @property
    def first_communication(self) -> Grids:
        """The grids of the first phase, of those with a backward if there are any; the plan's if there is no phase."""
        return self.communication[max(self.phases, key=self.has_backward)] if self.phases else self.plan.grids

    def grid_of(self, replica: int, phase: int) -> Grid:
        """The order of actions and communication on each device of a replica."""
        return self.communication[phase].of(pattern_of(self.plan.layout.meshes[replica]))

    def _channels(self, phase: int) -> list[Channel]:
        """What the functions of a phase take from those of other stages."""
        functions = [each for each in self.by_key.values() if each.key.phase == phase]
        makers = {ref: function.key for function in functions for ref in function.results}
        found: dict[Channel, None] = {}
        for function in functions:
            taken = (source.ref for source in function.arguments if source.kind == "micro")
            for maker in (makers[ref] for ref in taken if ref in makers):
                if maker.stage != function.key.stage:
                    found[Channel((maker.stage, maker.kind), (function.key.stage, function.key.kind))] = None
        return list(found)

    def _reduced(self, phase: int) -> set[int]:
        """The stages that have gradients which replicas add."""
        functions = self.by_key.values() if self.plan.layout.replicas > 1 else ()
        return {each.key.stage for each in functions if each.key.phase == phase and each.key.kind != "F" and each.sums}

    @property
    def by_key(self) -> Functions:
        """The functions at one size; those at others take and give the same."""
        return next(iter(self.variants.values()))

    @cached_property
    def needed(self) -> frozenset[str]:
        """The nodes that outputs and effects need."""
        return frozenset(self.graph.ancestors(self.graph.roots()))

    @cached_property
    def needed_everywhere(self) -> frozenset[str]:
        """What every group runs once per step: not what only the first one needs, but all that is merged for it."""
        roots = [*(name for name in self.graph.roots() if not self.runs_once(name)), *(ref.node for ref in self.merged)]
        found = self.graph.ancestors(roots, stop=lambda node: self.runs_once(node.name))
        return frozenset(name for name in found if not self.runs_once(name))

    @cached_property
    def merged(self) -> tuple[Ref, ...]:
        """What is made of the values of all parts for something that runs once per step: every group takes part."""
        taken = (
            self.behind_aliases(ref)
            for node in self.graph
            if node.name in self.needed and not self._is_merged(node.name)
            for ref in node.inputs
        )
        return tuple(dict.fromkeys(ref for ref in taken if self._is_merged(ref.node)))

    def copyable(self, name: str) -> bool:
        """Whether any device may compute a node for itself."""
        return copyable(self.graph, self.roles, name)

    def runs_once(self, name: str) -> bool:
        """Whether a node is run by the first group of replicas only."""
        node = self.graph[name]
        if self.roles.per_micro_batch(name) or node.op in BOUNDARY_OPS or node.op in ALIAS_OPS:
            return False
        return name in self._once or (self.roles.phase[name] == FREE and not self.copyable(name))

    @cached_property
    def _once(self) -> frozenset[str]:
        return frozenset(self.plan.once)

    @cached_property
    def shared(self) -> Mapping[Ref, None]:
        """What the first group of replicas computes for all: in order; none if there is no other group."""
        if len(self.plan.layout.groups) == 1:
            return {}
        wanted = {ref for ref in map(self.behind_aliases, self._taken_everywhere()) if self.runs_once(ref.node)}
        refs = (Ref(name, index) for name in self.graph.nodes for index in range(len(self.graph[name].outputs)))
        return {ref: None for ref in refs if ref in wanted}

    def behind_aliases(self, ref: Ref) -> Ref:
        """The tensor that one is another name of, where nothing is merged."""
        while self.graph[ref.node].op in ALIAS_OPS and not self._is_merged(ref.node):
            (ref,) = self.graph[ref.node].inputs
        return ref

    def _is_merged(self, name: str) -> bool:
        made_of = self.graph[name].inputs[0].node if name in self.roles.markers else name
        return self.roles.per_micro_batch(made_of)

    def _taken_everywhere(self) -> Iterator[Ref]:
        """What every group takes for itself."""
        for function in self.functions.values():
            yield from (source.ref for source in function.arguments if source.kind in ("step", "slice"))
        for node in self.graph:
            if node.name in self.needed and self._is_in_every_group(node):
                yield from node.inputs
        yield from self.graph.outputs
        yield from (Ref(name) for name in self.graph.effects if self.graph[name].op == "Write")

    def _is_in_every_group(self, node: Node) -> bool:
        """Whether a node runs once per step in every group, or is a Piece that each cuts for itself."""
        return node.op == "Piece" or not (self.roles.per_micro_batch(node.name) or self.runs_once(node.name))


def _passed(graph: Graph) -> Iterator[Ref]:
    """What a stage function takes and gives."""
    yield from (Ref(node.name) for node in graph if node.op == "Argument")
    yield from graph.outputs
