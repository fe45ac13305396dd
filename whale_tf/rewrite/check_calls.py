"""The part of `check` that reads Calls: each function once per micro-batch, with that micro-batch's values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import isclose
from typing import NamedTuple

from whale_tf.errors import ScheduleError
from whale_tf.ir.graph import Node, Ref
from whale_tf.ir.sharding import Split, parse_state
from whale_tf.plan.grid import Action
from whale_tf.rewrite.check_transfers import meetings, sends
from whale_tf.rewrite.cut import Key, Source, StageFunction
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.step_program import Functions, StepProgram

WEIGHT_TOLERANCE = 1e-6  # weights are written as float32

Part = tuple[int, int]  # (replica, micro-batch)


class Called(NamedTuple):
    """What a Call runs, and for whom."""

    node: Node
    function: StageFunction
    part: Part
    member: int = 0


@dataclass
class Calls:
    """The Calls of a program, read back.

    Attributes:
      groups: the groups of replicas that the program holds.
      parts: their (replica, micro-batch)es in the order of the examples.
      weights: each one's share of the examples.
      by_name: the Calls that make sense, by the name of their node.
    """

    step: StepProgram
    program: Program

    def __post_init__(self) -> None:
        self.main, self.graph, self.plan = self.program.main, self.step.graph, self.step.plan
        self.sent, self.meetings = sends(self.main), meetings(self.main)
        groups = self.plan.layout.groups
        self.groups = sorted({groups.of_process[process] for process in self.program.present})
        self.parts: list[Part] = sorted(part for group in self.groups for part in self.parts_of(group))
        self.weights = {part: self.plan.weight(*part) for part in self.parts}
        ranges = {part: (self.plan.offset(*part), self.plan.sizes[part[0]][part[1]]) for part in self.parts}
        self.of_range = {examples: part for part, examples in ranges.items()}
        read = {node.name: self._read(node) for node in self.main if node.op == "Call"}
        self.by_name = {name: called for name, called in read.items() if called is not None}

    def parts_of(self, group: int) -> list[Part]:
        """The (replica, micro-batch)es of a group of replicas, in the order of the examples."""
        members, count = self.plan.layout.groups.members[group], self.plan.micro_batches
        return [(replica, i) for replica in members for i in range(count)]

    def group_of(self, ref: Ref) -> int:
        """The group of replicas that has a tensor of the main graph."""
        return self.plan.layout.groups.of_process[self.program.process_of(self.main[ref.node])]

    def functions_of(self, part: Part) -> Functions:
        """The stage functions at the size of a micro-batch."""
        return self.step.variants[self.plan.sizes[part[0]][part[1]]]

    def faults(self) -> Iterator[str]:
        """Calls that are missing, repeated, misplaced, or that take another micro-batch's values."""
        counts = {
            (part, key, member): 0
            for part in self.parts
            for key in self.functions_of(part)
            for member in range(len(self.plan.layout.mesh_of(part[0], key.stage)))
            if not key.first
        }
        for node in self.main:
            if node.op == "Call" and node.name not in self.by_name:
                yield f"call '{node.name}' runs '{node.attrs['function'].decode()}', not made for its micro-batch"
        for called in self.by_name.values():
            counts[called.part, called.function.key._replace(first=False), called.member] += 1
            device = self.plan.layout.mesh_of(called.part[0], called.function.key.stage)[called.member]
            if called.node.device != device:
                yield f"call '{called.node.name}' is on device {called.node.device}, and the plan says {device}"
            yield from self._wrong_arguments(called)
        for ((replica, i), key, member), count in counts.items():
            if count != 1:
                of_mesh = f", member {member}" if member else ""
                yield f"{key} is called {count} times for replica {replica}, micro-batch {i}{of_mesh}"

    def step_values(self) -> Iterator[tuple[Ref, Ref]]:
        """What calls take of the step as a whole: the tensor of the main graph, and that of the step."""
        for called in self.by_name.values():
            for ref, source in zip(called.node.inputs, called.function.arguments, strict=False):
                if source.kind == "step":
                    yield ref, source.ref
                elif source.kind == "piece":
                    split = parse_state(source.name)
                    yield self._whole_of(ref, split.outer if isinstance(split, Split) else 1), source.ref
                elif source.kind == "slice" and self.graph[source.ref.node].op == "Piece":
                    piece = self.graph[source.ref.node]
                    yield self._whole_of(ref, piece.attrs["outer"]), piece.inputs[0]

    def origin(self, ref: Ref) -> Ref:
        """The tensor itself, where transfers brought it."""
        node = self.main[ref.node]
        while node.op == "Recv" and node.attrs["key"] in self.sent:
            ref = self.sent[node.attrs["key"]].inputs[0]
            node = self.main[ref.node]
        return ref

    def slice_of(self, node: Node, wanted: Node) -> Part | None:
        """The micro-batch whose piece of an Input, or of what a Piece takes, a node holds; None if it holds no such."""
        piece = wanted.op == "Piece"
        dim, outer = (wanted.attrs["dim"], wanted.attrs["outer"]) if piece else (0, 1)
        if outer > 1 and node.op == "Reshape":
            node = self.main[node.inputs[0].node]
        whole, part = node, self.parts[0] if len(self.parts) == 1 else None
        if node.op == "Slice":
            length = (wanted.outputs[0].shape[dim] or 0) // outer
            part = self._range_of(node, dim + (outer > 1), length // self.plan.examples if length > 0 else 1, piece)
            whole = self.main[self.origin(node.inputs[0]).node]
        if piece:  # the whole value is matched by step_values
            return part
        matches = whole.op == "Take" and wanted.op == "Input" and whole.attrs["index"] == wanted.attrs["index"]
        return part if matches else None

    def _range_of(self, node: Node, dim: int, chunk: int, piece: bool) -> Part | None:
        """The micro-batch whose examples a Slice takes."""
        begin, size = (self.main[ref.node].attrs.get("value") for ref in node.inputs[1:])
        if not isinstance(begin, tuple) or not isinstance(size, tuple):
            return None
        others = [index for index in range(len(begin)) if index != dim]
        if any(begin[index] for index in others) or any(size[index] != -1 for index in others):
            return None
        if begin[dim] % chunk or size[dim] % chunk:
            return None
        own = self.plan.examples_of(self.program.process_of(node))[0] if self.program.fed and not piece else 0
        return self.of_range.get((begin[dim] // chunk + own, size[dim] // chunk))

    def _is_piece(self, ref: Ref, source: Source, member: int, members: int) -> bool:
        """Whether a tensor is a member's piece of what it was cut from, which `step_values` follows."""
        split, shape = parse_state(source.name), self.graph.type_of(source.ref).shape
        if not isinstance(split, Split):
            return False
        dim, piece = split.dim, shape.sizes[split.dim] // split.outer // members
        node = self.main[ref.node]
        if split.outer > 1 and node.op == "Reshape":
            node, dim = self.main[node.inputs[0].node], dim + 1
        if node.op != "Slice":
            return False
        begin, size = (self.main[each.node].attrs.get("value") for each in node.inputs[1:])
        rank = len(shape) + (split.outer > 1)
        first = tuple(member * piece if index == dim else 0 for index in range(rank))
        return bool(begin == first and size == tuple(piece if index == dim else -1 for index in range(rank)))

    def _whole_of(self, ref: Ref, outer: int) -> Ref:
        """What a piece was cut from: where a dim is seen as two, between two reshapes."""
        for op in ("Reshape", "Slice", "Reshape") if outer > 1 else ("Slice",):
            node = self.main[self.origin(ref).node]
            if node.op != op:
                break
            ref = node.inputs[0]
        return self.origin(ref)

    def _read(self, node: Node) -> Called | None:
        function = self.program.functions.get(node.attrs["function"].decode())
        try:
            action = Action.parse(node.attrs["action"].decode())
        except ScheduleError:
            return None
        part = (node.attrs["replica"], action.micro_batch)
        key = Key(node.attrs["phase"], action.stage, action.kind)
        if function is None or part not in self.weights or key != function.key._replace(first=False):
            return None
        if not 0 <= node.attrs["member"] < len(self.plan.layout.mesh_of(part[0], key.stage)):
            return None
        expected = self.functions_of(part).get(function.key)
        return (
            Called(node, function, part, node.attrs["member"]) if expected is function or expected == function else None
        )

    def _wrong_arguments(self, called: Called) -> Iterator[str]:
        name, given, wanted = called.node.name, called.node.inputs, called.function.arguments
        if len(given) != len(wanted):
            yield f"call '{name}' gives {len(given)} arguments, and {called.function.key} takes {len(wanted)}"
        for position, (ref, source) in enumerate(zip(given, wanted, strict=False)):
            if not self._brings(self.origin(ref), source, called):
                what = source.name or source.ref
                yield f"argument {position} of call '{name}' is '{ref}', and should be its {source.kind} '{what}'"

    def _brings(self, ref: Ref, source: Source, called: Called) -> bool:
        """Whether a tensor is what a source describes; what is followed elsewhere (step, sum, seed) passes."""
        node, kind, part = self.main[ref.node], source.kind, called.part
        mesh = self.plan.layout.mesh_of(part[0], called.function.key.stage)
        if kind == "member":
            return node.op == "Const" and bool(node.attrs["value"] == called.member)
        if kind == "place":
            place = {"mesh": mesh, "member": called.member, "number": part[1]}
            return node.op == "Place" and dict(node.attrs) == place
        if kind == "piece":
            return self._is_piece(ref, source, called.member, len(mesh))
        if kind == "weight":
            wanted = self.weights[part] ** float(Fraction(source.name))
            return node.op == "Const" and isclose(node.attrs["value"], wanted, rel_tol=WEIGHT_TOLERANCE)
        if kind == "draw":
            return node.op == "Const" and bool(node.attrs["value"] == part[0] * self.plan.micro_batches + part[1])
        if kind == "first":
            return node.op == "Const" and bool(node.attrs["value"] == self.plan.offset(*part))
        if kind == "slice":
            return self.slice_of(node, self.graph[source.ref.node]) == part
        other = self.by_name.get(ref.node)
        result = other.function.results[ref.index] if other and ref.index < len(other.function.results) else None
        if kind == "micro":
            if other is None or other.part != part or result != source.ref:
                return False
            lies = other.function.lies.get(ref.index)
            beside = other.function.key.stage == called.function.key.stage
            return other.member == called.member if beside else lies is None
        return True
