"""The plan: every decision about a step, as one frozen value. The passes obey it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from rich.console import RenderableType

from whale_tf._protos import plan_pb2
from whale_tf.errors import PlanError
from whale_tf.ir.graph import Ref
from whale_tf.ir.sharding import WHOLE, Value
from whale_tf.plan.grids import Grids
from whale_tf.plan.layout import HOST_SEAT, Layout
from whale_tf.plan.mesh_use import MeshUse
from whale_tf.plan.residency import VariableLayout
from whale_tf.plan.stage_cost import StageCost
from whale_tf.plan.table import Shown, draw_plan, print_plan


@dataclass(frozen=True)
class Plan:
    """Which part of the step runs where, on which examples, in what order.

    Attributes:
      layout: the devices of each replica and stage.
      sizes: for each replica, how many examples each micro-batch holds.
      schedule: the schedule's name; `by hand` if the user wrote the grid.
      grids: the order of actions on each device of a replica, for each pipeline class (`layout.classes`).
      forward_grids: the same for phases that have no backward.
      stage_of: the stage of every operation that runs per micro-batch.
      seat_of: where every operation runs that runs once per step: the seat that it has in a group of replicas, for each
        kind of group.
      once: those of them that run in the first group only, and have one seat.
      variables: where each variable is, and who updates it.
      home_of: the device where the user's variable is, in the first process; elsewhere it is on its counterpart.
      merges: the states of what micro-batches have and the step needs whole; of a gradient, by its marker.
      stages: the cost of each stage.
      buckets: gradients that are reduced together over the replicas, by the names of their markers.
      collective: the buckets, by index, that the devices of a process reduce by a collective; the others are
        sent to the owner, which adds them.
      values: the states of the step's tensors over the parts of the batch; one that is not listed is whole.
      meshes: of the stages that are cut over several devices, what that comes to.
      lies: the states of tensors over the devices of their stage; one that is not listed is whole.
    Raises:
      PlanError: the fields contradict each other.
    """

    layout: Layout
    sizes: tuple[tuple[int, ...], ...]
    schedule: str
    grids: Grids
    forward_grids: Grids
    stage_of: Mapping[str, int]
    seat_of: Mapping[str, tuple[int, ...]]
    once: tuple[str, ...]
    variables: Mapping[str, VariableLayout]
    home_of: Mapping[str, int]
    merges: Mapping[Ref, Value]
    stages: tuple[StageCost, ...]
    buckets: tuple[tuple[str, ...], ...] = ()
    collective: tuple[int, ...] = ()
    values: Mapping[Ref, Value] = dataclasses.field(default_factory=dict)
    meshes: tuple[MeshUse, ...] = ()
    lies: Mapping[Ref, Value] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = list(self._contradictions())
        if wrong:
            raise PlanError(
                "the plan contradicts itself",
                details=wrong,
                way_out="Count stages, replicas and devices from 0, and change all fields that speak of them together.",
            )

    def _contradictions(self) -> Iterator[str]:
        replicas, stages, devices = self.layout.replicas, len(self.layout.stages), len(self.layout.devices)
        if len(self.layout.meshes) != replicas or len(self.sizes) != replicas:
            yield f"{replicas} replicas have shares, {len(self.layout.meshes)} meshes and {len(self.sizes)} sizes"
        yield from (
            f"replica {replica} has devices for {sum(map(bool, row))} stages, and there are {stages}"
            for replica, row in enumerate(self.layout.meshes)
            if len(row) != stages or not all(row)
        )
        if len({len(row) for row in self.sizes}) > 1:
            yield f"replicas have {', '.join(str(len(row)) for row in self.sizes)} micro-batches"
        if len(self.stages) != stages:
            yield f"the layout has {stages} stages, and there are costs of {len(self.stages)}"
        yield from (
            f"there is no grid for replica {replicas[0]}, whose stages are on devices {pattern}"
            for grids in (self.grids, self.forward_grids)
            for pattern, replicas in self.layout.classes.items()
            if pattern not in grids.patterns
        )
        yield from (
            f"bucket {index} is reduced by a collective, and there are {len(self.buckets)}"
            for index in self.collective
            if not 0 <= index < len(self.buckets)
        )
        yield from (
            f"the stage of '{name}' is {stage}, and there are {stages}"
            for name, stage in self.stage_of.items()
            if not 0 <= stage < stages
        )
        yield from (
            f"the home of '{name}' is device {device}, and there are {devices}"
            for name, device in self.home_of.items()
            if not 0 <= device < devices
        )
        misplaced = [
            f"replica {replica} is on device {device}, and there are {devices}"
            for replica in range(len(self.layout.meshes))
            for device in self.layout.devices_of(replica)
            if not 0 <= device < devices
        ]
        yield from misplaced or self._wrong_seats()

    def _wrong_seats(self) -> Iterator[str]:
        kinds, once = self.layout.groups.sizes, set(self.once)
        seats = {f"'{name}'": (of_kind, 1 if name in once else len(kinds)) for name, of_kind in self.seat_of.items()}
        owners = {name: variable.owner for name, variable in self.variables.items() if variable.owner}
        seats |= {f"the owner of '{name}'": (owner, len(kinds)) for name, owner in owners.items()}
        for title, (of_kind, wanted) in seats.items():
            if len(of_kind) != wanted:
                yield f"{title} has {len(of_kind)} seats, and should have {wanted}"
            for seat, members in zip(of_kind, kinds, strict=False):
                last = members * len(self.layout.stages)
                if not 0 <= seat <= last:
                    yield f"{title} has seat {seat}, and a group of {members} replicas has seats 0 to {last}"
        yield from (f"'{name}' runs in the first group only, and has no seat" for name in once - {*self.seat_of})

    def device_of(self, name: str, group: int) -> int:
        """Where what runs once per step runs in a group of replicas; on its host if the plan does not say."""
        of_kind = self.seat_of.get(name, (HOST_SEAT,))
        kind = self.layout.groups.kind_of(group)
        return self.layout.device_at(group, of_kind[kind if kind < len(of_kind) else 0])

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one replica."""
        return len(self.sizes[0])

    @property
    def parts(self) -> int:
        """Micro-batches of all replicas."""
        return self.layout.replicas * self.micro_batches

    @cached_property
    def examples(self) -> int:
        """The global batch; 0 if the step has none."""
        return sum(map(sum, self.sizes))

    @property
    def largest(self) -> int:
        """Examples of the largest micro-batch."""
        return max(map(max, self.sizes))

    @property
    def even(self) -> bool:
        """Whether all micro-batches have the same size."""
        return len({size for row in self.sizes for size in row}) == 1

    def part_order(self) -> Iterator[tuple[int, int]]:
        """(replica, micro-batch) in the order of the caller's examples."""
        return ((r, i) for r in range(self.layout.replicas) for i in range(self.micro_batches))

    def offset(self, replica: int, i: int) -> int:
        """The first example of a micro-batch, in the global batch."""
        return self._first[replica] + sum(self.sizes[replica][:i])

    @cached_property
    def _first(self) -> tuple[int, ...]:
        """The first example of each replica, and the end."""
        return tuple(accumulate(map(sum, self.sizes), initial=0))

    def examples_of(self, process: int) -> tuple[int, int]:
        """The first example that a process's replicas need, and the one after the last; none if it has no replica."""
        layout = self.layout
        group = layout.groups.members[layout.groups.of_process[process]]
        own = [r for r in group if any(layout.process_of(device) == process for device in layout.devices_of(r))]
        return (self._first[own[0]], self._first[own[-1] + 1]) if own else (0, 0)

    def weight(self, replica: int, i: int) -> float:
        """A micro-batch's part of the examples; the same for all if the step has no batch."""
        return self.sizes[replica][i] / self.examples if self.examples else 1.0 / self.parts

    def share(self, replica: int) -> float:
        """A replica's part of the examples."""
        return sum(self.weight(replica, i) for i in range(self.micro_batches))

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits, equal for equal plans; only to be compared under the same release of protobuf."""
        return hashlib.sha256(self.to_proto().SerializeToString(deterministic=True)).hexdigest()

    def states(self, pattern: str = "") -> dict[str, str]:
        """The states of the tensors whose names a regular expression is found in, but of those that are whole.

        Over the parts of the batch; and behind `mesh:` over the devices of a stage that is cut.
        """
        found = re.compile(pattern)
        states = {ref: str(value) for ref, value in self.values.items()}
        states |= {ref: f"{states.get(ref, WHOLE)}, mesh: {value}" for ref, value in self.lies.items()}
        return {str(ref): text for ref, text in states.items() if found.search(str(ref))}

    def __str__(self) -> str:
        return print_plan(self._shown())

    def __rich__(self) -> RenderableType:
        return draw_plan(self._shown())

    def _shown(self) -> Shown:
        return Shown(
            layout=self.layout,
            sizes=self.sizes,
            schedule=self.schedule,
            grids=self.grids,
            stages=self.stages,
            values=self.values,
            meshes=self.meshes,
            merges=len(self.merges),
        )

    def to_proto(self) -> plan_pb2.Plan:
        """The message of this plan."""
        return plan_pb2.Plan(
            layout=_layout_message(self.layout),
            sizes=[plan_pb2.Sizes(examples=row) for row in self.sizes],
            schedule=self.schedule,
            grids=self.grids.to_proto(),
            forward_grids=self.forward_grids.to_proto(),
            stage_of=self.stage_of,
            seat_of={name: plan_pb2.Seats(kinds=of_kind) for name, of_kind in self.seat_of.items()},
            once=self.once,
            variables={name: _variable_message(variable) for name, variable in self.variables.items()},
            home_of=self.home_of,
            merges=_values_message(self.merges),
            states=_values_message(self.values),
            meshes=[mesh.to_proto() for mesh in self.meshes],
            lies=_values_message(self.lies),
            stages=[plan_pb2.Stage(**dataclasses.asdict(stage)) for stage in self.stages],
            buckets=[
                plan_pb2.Bucket(markers=markers, collective=index in self.collective)
                for index, markers in enumerate(self.buckets)
            ],
        )

    @classmethod
    def from_proto(cls, message: plan_pb2.Plan) -> Plan:
        """The plan of a message.

        Raises:
          PlanError: its fields contradict each other.
          ScheduleError: a grid cannot be read.
        """
        costs = [field.name for field in dataclasses.fields(StageCost)]
        return cls(
            layout=_layout(message.layout),
            sizes=tuple(tuple(row.examples) for row in message.sizes),
            schedule=message.schedule,
            grids=Grids.from_proto(message.grids),
            forward_grids=Grids.from_proto(message.forward_grids),
            stage_of=dict(sorted(message.stage_of.items())),
            seat_of={name: tuple(message.seat_of[name].kinds) for name in sorted(message.seat_of)},
            once=tuple(message.once),
            variables={name: _variable(message.variables[name]) for name in sorted(message.variables)},
            home_of=dict(sorted(message.home_of.items())),
            merges=_values(message.merges),
            stages=tuple(StageCost(*(getattr(stage, name) for name in costs)) for stage in message.stages),
            buckets=tuple(tuple(bucket.markers) for bucket in message.buckets),
            collective=tuple(index for index, bucket in enumerate(message.buckets) if bucket.collective),
            values=_values(message.states),
            meshes=tuple(map(MeshUse.from_proto, message.meshes)),
            lies=_values(message.lies),
        )


def _layout_message(layout: Layout) -> plan_pb2.Layout:
    return plan_pb2.Layout(
        shares=layout.shares,
        stages=layout.stages,
        meshes=[plan_pb2.Meshes(stages=[plan_pb2.Mesh(devices=mesh) for mesh in row]) for row in layout.meshes],
        devices=layout.devices,
        processes=layout.processes,
    )


def _layout(message: plan_pb2.Layout) -> Layout:
    return Layout(
        shares=tuple(message.shares),
        stages=tuple(message.stages),
        meshes=tuple(tuple(tuple(mesh.devices) for mesh in row.stages) for row in message.meshes),
        devices=tuple(message.devices),
        processes=tuple(message.processes),
    )


def _variable_message(variable: VariableLayout) -> plan_pb2.VariableLayout:
    return plan_pb2.VariableLayout(
        owner=variable.owner,
        everywhere=variable.everywhere,
        returned=variable.returned,
        stages=variable.stages,
        seats=[plan_pb2.Seats(kinds=of_kind) for of_kind in variable.seats],
    )


def _variable(message: plan_pb2.VariableLayout) -> VariableLayout:
    seats = tuple(tuple(of_kind.kinds) for of_kind in message.seats)
    return VariableLayout(tuple(message.owner), message.everywhere, message.returned, tuple(message.stages), seats)


def _values_message(values: Mapping[Ref, Value]) -> list[plan_pb2.Merge]:
    return [plan_pb2.Merge(node=ref.node, index=ref.index, value=str(value)) for ref, value in sorted(values.items())]


def _values(message: Iterable[plan_pb2.Merge]) -> dict[Ref, Value]:
    return {Ref(each.node, each.index): Value.parse(each.value) for each in message}
