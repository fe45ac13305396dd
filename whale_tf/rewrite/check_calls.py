"""The part of `check` that reads Calls: each function once per micro-batch, with that micro-batch's values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose
from typing import NamedTuple

from whale_tf.errors import ScheduleError
from whale_tf.ir.graph import Node, Ref
from whale_tf.plan.grid import Action
from whale_tf.plan.plan import Plan
from whale_tf.plan.roles import variable_of
from whale_tf.rewrite.bind import Variant
from whale_tf.rewrite.check_transfers import reductions, sends
from whale_tf.rewrite.cut import Key, Source, StageFunction
from whale_tf.rewrite.program import Program

WEIGHT_TOLERANCE = 1e-6  # weights are written as float32

Part = tuple[int, int]  # (replica, micro-batch)


class Called(NamedTuple):
    """What a Call runs, and for whom."""

    node: Node
    function: StageFunction
    part: Part


@dataclass
class Calls:
    """The Calls of a program, read back.

    Attributes:
      variants: the step at each size of micro-batch.
      parts: every (replica, micro-batch) in the order of the examples.
      weights: its share of the examples.
      by_name: the Calls that make sense, by the name of their node.
    """

    plan: Plan
    variants: Mapping[int, Variant]
    program: Program

    def __post_init__(self) -> None:
        self.main = self.program.main
        self.sent = sends(self.main)
        self.reductions = reductions(self.main)
        self.parts: list[Part] = list(self.plan.part_order())
        self.weights = {part: self.plan.weight(*part) for part in self.parts}
        ranges = {part: (self.plan.offset(*part), self.plan.sizes[part[0]][part[1]]) for part in self.parts}
        self.of_range = {examples: part for part, examples in ranges.items()}
        read = {node.name: self._read(node) for node in self.main if node.op == "Call"}
        self.by_name = {name: called for name, called in read.items() if called is not None}

    def variant_of(self, part: Part) -> Variant:
        """The step at the size of a micro-batch."""
        return self.variants[self.plan.sizes[part[0]][part[1]]]

    def faults(self) -> Iterator[str]:
        """Calls that are missing, repeated, misplaced, or that take another micro-batch's values."""
        counts = {(part, key): 0 for part in self.parts for key in self.variant_of(part).functions}
        for node in self.main:
            if node.op == "Call" and node.name not in self.by_name:
                yield f"call '{node.name}' runs '{node.attrs['function'].decode()}', not made for its micro-batch"
        for called in self.by_name.values():
            counts[called.part, called.function.key] += 1
            device = self.plan.layout.device_of(called.part[0], called.function.key.stage)
            if called.node.device != device:
                yield f"call '{called.node.name}' is on device {called.node.device}, and the plan says {device}"
            yield from self._wrong_arguments(called)
        for ((replica, i), key), count in counts.items():
            if count != 1:
                yield f"{key} is called {count} times for replica {replica}, micro-batch {i}"

    def step_values(self) -> Iterator[tuple[Ref, Ref]]:
        """What calls take of the step as a whole: the tensor of the main graph, and that of the step."""
        for called in self.by_name.values():
            for ref, source in zip(called.node.inputs, called.function.arguments, strict=False):
                if source.kind == "step":
                    yield ref, source.ref

    def origin(self, ref: Ref) -> Ref:
        """The tensor itself, where transfers brought it."""
        node = self.main[ref.node]
        while node.op == "Recv" and node.attrs["key"] in self.sent:
            ref = self.sent[node.attrs["key"]].inputs[0]
            node = self.main[ref.node]
        return ref

    def slice_of(self, node: Node, wanted: Node) -> Part | None:
        """The micro-batch whose examples of an Input a node holds; None if it does not hold just these."""
        whole, part = node, self.parts[0] if len(self.parts) == 1 else None
        if node.op == "Slice":
            begin, size = (self.main[ref.node].attrs.get("value") for ref in node.inputs[1:])
            if not isinstance(begin, tuple) or not isinstance(size, tuple):
                return None
            if any(begin[1:]) or any(rest != -1 for rest in size[1:]):
                return None
            process = self.program.process_of(node)
            first = begin[0] + (self.plan.examples_of(process)[0] if self.program.fed else 0)
            whole, part = self.main[self.origin(node.inputs[0]).node], self.of_range.get((first, size[0]))
        matches = whole.op == "Take" and wanted.op == "Input" and whole.attrs["index"] == wanted.attrs["index"]
        return part if matches else None

    def _read(self, node: Node) -> Called | None:
        function = self.program.functions.get(node.attrs["function"].decode())
        try:
            action = Action.parse(node.attrs["action"].decode())
        except ScheduleError:
            return None
        part = (node.attrs["replica"], action.micro_batch)
        key = Key(node.attrs["phase"], action.stage, action.kind)
        if function is None or part not in self.weights or key != function.key:
            return None
        expected = self.variant_of(part).functions.get(key)
        return Called(node, function, part) if expected is function or expected == function else None

    def _wrong_arguments(self, called: Called) -> Iterator[str]:
        name, given, wanted = called.node.name, called.node.inputs, called.function.arguments
        if len(given) != len(wanted):
            yield f"call '{name}' gives {len(given)} arguments, and {called.function.key} takes {len(wanted)}"
        for position, (ref, source) in enumerate(zip(given, wanted, strict=False)):
            if not self._brings(self.origin(ref), source, called.part):
                what = source.name or source.ref
                yield f"argument {position} of call '{name}' is '{ref}', and should be its {source.kind} '{what}'"

    def _brings(self, ref: Ref, source: Source, part: Part) -> bool:
        """Whether a tensor is what a source describes; what is followed elsewhere (step, sum, seed) passes."""
        node, kind = self.main[ref.node], source.kind
        if kind == "weight":
            return node.op == "Const" and isclose(node.attrs["value"], self.weights[part], rel_tol=WEIGHT_TOLERANCE)
        if kind == "draw":
            return node.op == "Const" and bool(node.attrs["value"] == part[0] * self.plan.micro_batches + part[1])
        if kind == "slice":
            return self.slice_of(node, self.variant_of(part).graph[source.ref.node]) == part
        other = self.by_name.get(ref.node)
        result = other.function.results[ref.index] if other and ref.index < len(other.function.results) else None
        if kind == "micro":
            return other is not None and other.part == part and result == source.ref
        if kind == "state":
            if other is None or result is None:
                return node.op == "Read" and variable_of(node) == source.name
            written = self.variant_of(other.part).graph[result.node]
            return other.part[0] == part[0] and written.op == "Write" and variable_of(written) == source.name
        return True
