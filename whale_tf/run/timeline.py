"""The timeline of a real step: what each device did when, as the devices' own clock readings tell it.

    CPU:0  ██0F0██ ██0F1██      ██████0B0██████ ██████0B1██████ █U█
    CPU:1          ██1F0██ ██████1B0██████ ██1F1██ ██████1B1██████ █U█

It is the step's own program that is timed, with readings of the clock between its actions. One difference remains:
calls that TensorFlow would inline stay apart.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import tensorflow as tf

from whale_tf.plan.grid import Action
from whale_tf.rewrite.time_actions import UPDATE, Timed, timed
from whale_tf.run.away import is_away
from whale_tf.run.compiled import Compiled
from whale_tf.run.processes import World

KINDS: Mapping[str, str] = {
    "F": "forward",
    "B": "backward",
    "I": "input gradients",
    "W": "weight gradients",
    UPDATE: "update",
}
# Names of Chrome's palette; Perfetto takes its colours from the slices' names.
COLOURS: Mapping[str, str] = {
    "F": "rail_load",
    "B": "rail_response",
    "I": "rail_response",
    "W": "rail_animation",
    UPDATE: "rail_idle",
}
STEP = 1  # the trace's one process


@dataclass(frozen=True)
class Slice:
    """What one device did without a break.

    Attributes:
      device: an index into the timeline's devices.
      name: the action as in the schedule, `1F0`; `U` for an update.
      replica: whose action; -1 for an update, which is of all replicas.
      phase: the round of actions, counted from 0; a step has more than one if actions depend on an update.
      start_us, end_us: microseconds since the step began.
    """

    device: int
    name: str
    replica: int
    phase: int
    start_us: float
    end_us: float

    @property
    def kind(self) -> str:
        """`F`, `B`, `I`, `W` or `U`."""
        return UPDATE if self.name == UPDATE else Action.parse(self.name).kind


@dataclass(frozen=True)
class Timeline:
    """One step in time.

    Attributes:
      devices: full names, in the plan's order.
      slices: by device, then by time; two of one device never overlap.
      transfers: from which slice another one on another device got values, as indices into `slices`.
      outputs: the step's flat outputs.
    """

    devices: tuple[str, ...]
    slices: tuple[Slice, ...]
    transfers: tuple[tuple[int, int], ...]
    outputs: tuple[tf.Tensor, ...] = field(default=(), compare=False, repr=False)

    @property
    def microseconds(self) -> float:
        """From the step's begin to the end of its last slice."""
        return max((slice.end_us for slice in self.slices), default=0.0)

    def row(self, device: int) -> tuple[Slice, ...]:
        """The slices of one device, in order."""
        return tuple(slice for slice in self.slices if slice.device == device)

    def __str__(self) -> str:
        """How long the step took, and what part of that each device was busy."""
        total = self.microseconds or 1.0
        lines = [f"{self.microseconds / 1000:.1f} ms"]
        for index, name in enumerate(self.devices):
            row = self.row(index)
            if row:
                busy = sum(slice.end_us - slice.start_us for slice in row)
                lines.append(f"{_label(name)}: busy {busy / total:4.0%}: {' '.join(slice.name for slice in row)}")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the trace that https://ui.perfetto.dev and chrome://tracing open, and its folder if there is none."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        events = [*self._names(), *map(self._complete, self.slices), *self._arrows()]
        file.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, indent=1))

    def _names(self) -> Iterator[dict[str, Any]]:
        used = sorted({slice.device for slice in self.slices})
        yield {"ph": "M", "name": "process_name", "pid": STEP, "args": {"name": "step"}}
        for device in used:
            row = {"ph": "M", "pid": STEP, "tid": device + 1}
            yield {**row, "name": "thread_name", "args": {"name": _label(self.devices[device])}}
            yield {**row, "name": "thread_sort_index", "args": {"sort_index": device}}

    def _complete(self, slice: Slice) -> dict[str, Any]:
        args: dict[str, Any] = {"device": self.devices[slice.device]}
        if slice.kind != UPDATE:
            action = Action.parse(slice.name)
            args |= {"replica": slice.replica, "stage": action.stage, "micro_batch": action.micro_batch}
        if slice.phase:
            args["round"] = slice.phase
        return {
            "ph": "X",
            "name": slice.name,
            "cat": KINDS[slice.kind],
            "cname": COLOURS[slice.kind],
            "pid": STEP,
            "tid": slice.device + 1,
            "ts": round(slice.start_us, 3),
            "dur": round(slice.end_us - slice.start_us, 3),
            "args": args,
        }

    def _arrows(self) -> Iterator[dict[str, Any]]:
        """Arrows hang on the slice that is open at their time: from the middle of one to the start of the other."""
        for number, (giver, taker) in enumerate(self.transfers, 1):
            source, target = self.slices[giver], self.slices[taker]
            arrow = {"name": f"{source.name} to {target.name}", "cat": "transfer", "id": number, "pid": STEP}
            left = (source.start_us + source.end_us) / 2
            yield {**arrow, "ph": "s", "tid": source.device + 1, "ts": round(left, 3)}
            yield {**arrow, "ph": "f", "bp": "e", "tid": target.device + 1, "ts": round(target.start_us, 3)}


def measure(compiled: Compiled, tensors: Sequence[tf.Tensor]) -> Timeline:
    """Runs one step and says when each device did what.

    The first run of a program also prepares its functions, which takes longer than the step. So the step is run twice,
    and the first time is undone: the variables advance as by one call. Other effects, as summaries, are seen twice, and
    stateful random operations draw twice.

    Args:
      compiled: the step's plan for these inputs.
      tensors: the global batch, flat.
    Raises:
      RunError: an operation failed; the variables are as before.
    """
    stamped = timed(compiled.program)
    with compiled.variant(stamped.program) as run:
        with kept(compiled.parts.variables.values()):
            run(tensors)
        outputs = run(tensors)
    seconds = [float(time) for time in outputs[stamped.outputs :]]
    layout, world = compiled.plan.layout, compiled.parts.world
    devices = tuple(map(layout.label, range(len(layout.devices)))) if world else layout.devices
    timeline = _timeline(devices, stamped, tuple(outputs[: stamped.outputs]), seconds)
    return timeline if world is None else _of_all(world, timeline, min(seconds))


def _of_all(world: World, own: Timeline, began: float) -> Timeline:
    """The rows of all processes; each host's own clock tells when its step began, in seconds."""
    payload = json.dumps([began, [vars(slice) for slice in own.slices], own.transfers])
    found = [json.loads(each) for each in world.exchange("the timeline", payload.encode())]
    first = min(each[0] for each in found)
    slices: list[Slice] = []
    transfers: list[tuple[int, int]] = []
    for its_began, its_slices, its_transfers in found:
        late = 1e6 * (its_began - first)
        transfers += [(giver + len(slices), taker + len(slices)) for giver, taker in its_transfers]
        slices += [
            replace(slice, start_us=slice.start_us + late, end_us=slice.end_us + late)
            for slice in (Slice(**each) for each in its_slices)
        ]
    return Timeline(own.devices, tuple(slices), tuple(transfers), own.outputs)


@contextlib.contextmanager
def kept(variables: Iterable[Any]) -> Iterator[None]:
    """Gives variables the values back that they had, whatever happens to them within."""
    before = [(variable, variable.read_value()) for variable in variables if not is_away(variable)]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _timeline(
    devices: tuple[str, ...], stamped: Timed, outputs: tuple[tf.Tensor, ...], seconds: Sequence[float]
) -> Timeline:
    """Sorts clock readings into rows.

    An update that other work of the same device does not wait for ends, in its row, where that work starts.
    """
    zero = min(seconds)
    times = [1e6 * (time - zero) for time in seconds]
    made = []
    for span in stamped.spans:
        ready = min(times[k] for k in span.ready)
        start = ready if span.free is None else max(times[span.free], ready)
        made.append(Slice(span.device, span.action, span.replica, span.phase, start, max(start, times[span.end])))
    order = sorted(range(len(made)), key=lambda k: (made[k].device, made[k].start_us, made[k].end_us))
    slices = [made[k] for k in order]
    for position, (slice, after) in enumerate(pairwise(slices)):
        if slice.device == after.device and slice.end_us > after.start_us:
            slices[position] = Slice(**{**vars(slice), "end_us": after.start_us})
    places = {k: position for position, k in enumerate(order)}
    transfers = sorted((places[giver], places[taker]) for giver, taker in stamped.transfers)
    return Timeline(devices, tuple(slices), tuple(transfers), outputs)


def _label(device: str) -> str:
    return device.rsplit("device:", 1)[-1]
