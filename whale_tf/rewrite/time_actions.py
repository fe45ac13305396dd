"""Lets a step tell the time: a clock is read before and after every action and every update.

    Before:  1F0 = Call(h)                                 1B0 = Call(1F0) after 1F0
    After:   a = Timestamp() after h                       c = Timestamp() after 1F0, b
             1F0 = Call(h) after a                         1B0 = Call(1F0) after 1F0, c
             b = Timestamp() after 1F0                     d = Timestamp() after 1B0

The step's values stay what they are: only control edges are added, and the times come as further outputs. Calls stay
calls, and those of one device run one after the other, also in a program whose calls are inlined or keep no order. What
uses a value waits for the clock that says when it was there: a clock that nothing waits for may be read long after,
when all threads are busy with what comes next.

What the assignments and later rounds need and what is no call is one update per device and round. It starts when the
first of its operations has all it takes, and the device's calls of the round have ended. Transfers, the assignments
themselves, which only swap a buffer, and the joining of the step's results are no part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.rewrite.check_transfers import meeting_of, meetings
from whale_tf.rewrite.program import COLLECTIVES, Program

UPDATE = "U"
NOTHING_TO_WAIT_FOR = frozenset({"Const", "Take", "Outside"})
NO_WORK = NOTHING_TO_WAIT_FOR | COLLECTIVES | {"Read", "Assign", "Send", "Recv", "Slice", "Call", "NoOp"}
TIME = TensorType(DType("float64"), Shape())


@dataclass(frozen=True)
class Span:
    """What is timed: one action, or the update of one device.

    It starts when the device is free and the first of its operations has all it takes. Times are indices into those
    that the program gives.

    Attributes:
      device: an index into the program's devices.
      action: `1F0` as in the schedule; `U` for an update.
      replica: whose action; -1 for an update, which is of all replicas.
      phase: the round of actions it is of, or follows.
      free: when the device has ended the last call before; None if there is none.
      ready: when its operations have all they take, one or more.
      end: when it is done.
    """

    device: int
    action: str
    replica: int
    phase: int
    free: int | None
    ready: tuple[int, ...]
    end: int


@dataclass(frozen=True)
class Timed:
    """A program that tells the time.

    Attributes:
      program: its outputs are the step's, then times in seconds; the first of these is when the step began.
      outputs: how many are the step's.
      spans: what is timed: the calls, those of one device in the order in which they run, then the updates.
      transfers: which span another one gets values from, on another device, as indices into `spans`.
    """

    program: Program
    outputs: int
    spans: tuple[Span, ...]
    transfers: tuple[tuple[int, int], ...]


def timed(program: Program) -> Timed:
    """The program with its actions and updates timed."""
    return _Timing(program).timed()


class _Timing:
    """The timed graph under construction."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.main = program.main
        self.meetings = meetings(program.main)
        self.host = program.devices[program.host].rsplit("/device:", 1)[0] + "/device:CPU:0"
        self.devices = (*program.devices, *([] if self.host in program.devices else [self.host]))
        self.nodes: dict[str, Node] = {}
        self.clocks: dict[str, int] = {}
        self.spans: list[Span] = []
        self.span_of: dict[str, int] = {}
        self.last: dict[tuple[int, int], str] = {}

    def timed(self) -> Timed:
        self.began = self.read_clock("began", self.program.host)
        updates = _updates(self.main)
        entries = {name for members in updates.values() for name in self.entries(members)}
        for node in self.main:
            if node.op == "Call":
                self.call(node)
            else:
                self.nodes[node.name] = self.after_clocks(node, entry=node.name in entries)
        for (device, phase), members in updates.items():
            self.update(device, phase, members)
        main = Graph.of(self.nodes.values(), (*self.main.outputs, *map(Ref, self.clocks)), self.main.effects)
        program = replace(self.program, main=main, devices=self.devices, inline=False)
        return Timed(program, len(self.main.outputs), tuple(self.spans), self.transfers())

    def call(self, call: Node) -> None:
        """Adds a call between two readings of the clock, after the last call on its device."""
        action, replica, phase = (call.attrs[name] for name in ("action", "replica", "phase"))
        before = self.before(call.device, phase)
        needed = [*self.local(call), *call.control, *([before] if before else [])]
        start = self.read_clock(f"{call.name}/start", call.device, needed)
        self.nodes[call.name] = call.with_(control=(*call.control, start))
        end = self.read_clock(f"{call.name}/end", call.device, [call.name])
        self.last[call.device, phase] = end
        times = (self.clocks.get(before), (self.clocks[start],), self.clocks[end])
        self.span([call.name], Span(call.device, action.decode(), replica, phase, *times))

    def after_clocks(self, node: Node, *, entry: bool) -> Node:
        """A node that is no call, after the clocks that tell when its inputs are there; of an entry also its own."""
        ends = [f"clock/{ref.node}/end" for ref in node.inputs if self.main[ref.node].op == "Call"]
        if node.op in ("Read", "Slice") and node.device == self.program.host:
            ends.append(self.began)
        ready = [self.read_clock(f"{node.name}/ready", node.device, [*self.local(node), *ends])] if entry else []
        return node.with_(control=tuple(dict.fromkeys((*node.control, *ends, *ready)))) if ends or ready else node

    def entries(self, members: list[str]) -> list[str]:
        """The operations of an update that take what calls computed, or nothing from the others."""
        inside = frozenset(members)
        inputs = {name: [ref.node for ref in self.main[name].inputs] for name in members}
        given = {name for name, taken in inputs.items() if any(self.source(each).op == "Call" for each in taken)}
        return [name for name, taken in inputs.items() if name in given or inside.isdisjoint(taken)]

    def update(self, device: int, phase: int, members: list[str]) -> None:
        """Adds the clock at the end of one update; those at its entries are there."""
        end = self.read_clock(f"update/{device}/{phase}/end", device, members)
        ready = tuple(self.clocks[f"clock/{name}/ready"] for name in self.entries(members))
        free = self.clocks.get(self.before(device, phase))
        self.span(members, Span(device, UPDATE, -1, phase, free, ready, self.clocks[end]))

    def span(self, members: list[str], span: Span) -> None:
        self.span_of |= dict.fromkeys(members, len(self.spans))
        self.spans.append(span)

    def before(self, device: int, phase: int) -> str:
        """The clock that is read at the end of the device's last call up to a phase; empty if there is none."""
        phases = [p for d, p in self.last if d == device and p <= phase]
        return self.last[device, max(phases)] if phases else ""

    def read_clock(self, name: str, device: int, after: Iterable[str] = ()) -> str:
        """Adds one reading; for a device without a clock on the host, which waits until the device has come to rest."""
        if "CPU" not in self.devices[device]:
            device = self.devices.index(self.host)
        unique = f"clock/{name}"
        self.clocks[unique] = len(self.clocks)
        control = tuple(dict.fromkeys(after))
        self.nodes[unique] = Node(unique, "Timestamp", control=control, outputs=(TIME,), stateful=True, device=device)
        return unique

    def local(self, node: Node) -> list[str]:
        """What it takes from nodes that take time."""
        return [ref.node for ref in node.inputs if self.main[ref.node].op not in NOTHING_TO_WAIT_FOR]

    def source(self, name: str) -> Node:
        """What computed a value: for one that was received, at its sender."""
        node = self.main[name]
        while node.op == "Recv" and node.twin:
            node = self.main[self.main[node.twin].inputs[0].node]
        return node

    def sources(self, name: str) -> Iterator[Node]:
        """What computed the values that a node takes: for a sum over devices, on all of them."""
        for ref in self.main[name].inputs:
            node = self.source(ref.node)
            peers = self.meetings[meeting_of(node)] if node.op == "Reduce" else []
            yield from [self.source(each.node) for peer in peers for each in peer.inputs] or [node]

    def transfers(self) -> tuple[tuple[int, int], ...]:
        found: dict[tuple[int, int], None] = {}
        for name, span in self.span_of.items():
            for source in self.sources(name):
                giver = self.span_of.get(source.name, span)
                if self.spans[giver].device != self.spans[span].device:
                    found[giver, span] = None
        return tuple(found)


def _updates(main: Graph) -> dict[tuple[int, int], list[str]]:
    """The operations of each update, by device and phase, in order."""
    rounds, needed = _rounds(main), _needed(main)
    found: dict[tuple[int, int], list[str]] = {}
    for node in main:
        if node.op not in NO_WORK and node.name in needed and rounds[node.name] >= 0:
            found.setdefault((node.device, rounds[node.name]), []).append(node.name)
    return dict(sorted(found.items(), key=lambda update: (update[0][1], update[0][0])))


def _rounds(main: Graph) -> Mapping[str, int]:
    """For each node the last phase whose calls it depends on; -1 if it depends on none."""
    rounds: dict[str, int] = {}
    for node in main:
        own: Any = node.attrs["phase"] if node.op == "Call" else -1
        rounds[node.name] = max([own, *(rounds[name] for name in _needs(node))])
    return rounds


def _needed(main: Graph) -> set[str]:
    """What assignments, other effects and calls depend on."""
    needed = set(main.effects)
    for node in reversed(list(main)):
        if node.name in needed or node.op == "Call":
            needed.update(_needs(node))
    return needed


def _needs(node: Node) -> list[str]:
    """What must have run: a value that is received was sent."""
    sent = [node.twin] if node.twin and node.op == "Recv" else []
    return [*(ref.node for ref in node.inputs), *node.control, *sent]
