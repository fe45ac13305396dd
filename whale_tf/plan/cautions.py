"""What a user is warned of: what each part has of its own by consent, idle devices, and operations that are not cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from whale_tf.errors import Line
from whale_tf.ir.graph import Graph
from whale_tf.plan.cost import tensor_bytes
from whale_tf.plan.layout import Layout
from whale_tf.plan.plan import Plan
from whale_tf.plan.request import Request
from whale_tf.plan.strategy import Strategy

Caution = tuple[Line, str]  # where, and what


def caution_accepted(accepted: Sequence[str], line: Callable[[str], Line], step: Line) -> Iterator[Caution]:
    """Of operations that accept= names, of which each part of the batch has its own value."""
    if accepted:
        each = ", ".join(f"'{name}' (at {line(name)})" for name in accepted)
        at = next((at for at in map(line, accepted) if at.number), step)
        yield at, f"each part of the batch has its own value of what accept= names: {each}"


def caution_idle(layout: Layout, request: Request, given: Strategy, advice: str, step: Line) -> Iterator[Caution]:
    """Of devices that are not used, where nobody has said how many replicas there are to be.

    Args:
      advice: how to have more devices, where the script has not asked for any; else empty.
    """
    if given.replicas is not None:
        return
    many = request.replica is not None and request.replica.count is None
    if many and len(layout.devices) == 1 and advice:
        yield step, f"whale.init was not called, so {request.replica} has one device. {advice}"
    if layout.idle and request.stages and request.replica is None:
        idle = list(map(layout.label, layout.idle))
        yield (
            step,
            f"{len(idle)} devices are left idle ({', '.join(idle)}): put replica() around the stages to use them",
        )


def caution_uncut(layout: Layout, request: Request, step: Line) -> Iterator[Caution]:
    """Of stages in which split() has only one device, where there are more."""
    for stage in sorted(request.split_stages):
        if stage not in layout.wide and len(layout.devices) > layout.replicas:
            name = layout.stages[stage] or "the step"
            yield (
                step,
                f"split() cuts nothing in {name}, which has one device in each replica: write stage(devices=2) around "
                "it, or Strategy(devices=...) with several devices for the stage",
            )


def caution_gathered(plan: Plan, graph: Graph, line: Callable[[str], Line]) -> Iterator[Caution]:
    """Of operations that take whole what is cut before them."""
    for mesh in plan.meshes:
        for name in mesh.gathered[:1]:
            more = f", and {len(mesh.gathered) - 1} other operations" if len(mesh.gathered) > 1 else ""
            size = sum(map(tensor_bytes, graph[name].outputs))
            all_of_it = f"all {size:,} bytes of it" if size > 0 else "all of it"
            yield (
                line(name),
                f"{graph[name].op} '{name}'{more} cannot be cut over {mesh.members} devices and takes whole what "
                f"split() cuts: each device computes {all_of_it}. print(step.plan) shows what is sent",
            )
