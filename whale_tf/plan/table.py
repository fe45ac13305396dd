"""A plan as a person reads it: what it decided, one row per stage, idle devices, and the schedule where it fits.

From the text of one:

    2 replicas, 2 stages, 2 micro-batches of 4 examples, schedule 1f1b (bubble 33%), loss mean, global batch 16

    stage     ops   parameters   devices        FLOPs     in    out   residuals    live activations
    ───────────────────────────────────────────────────────────────────────────────────────────────
    encoder     2           48   CPU:0, CPU:2     768   96 B   96 B         0 B       2 x 0 B = 0 B
    1           6           18   CPU:1, CPU:3     468   96 B   96 B       144 B   1 x 144 B = 144 B
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import groupby

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from whale_tf.ir.graph import Ref
from whale_tf.ir.sharding import Value
from whale_tf.plan.check_schedule import check_grid
from whale_tf.plan.grids import Grids
from whale_tf.plan.layout import Layout
from whale_tf.plan.mesh_use import MeshUse
from whale_tf.plan.stage_cost import StageCost
from whale_tf.plan.units import in_bytes, in_units

WIDTH = 120
SHOWN_STATES = 4
GRID_WIDTH = 100
_NOTE = "FLOPs, in, out and residuals: of the largest micro-batch. Live activations: the most kept at the same time."
_ACTION_STYLES = {r"\d+F\d+": "green", r"\d+[BI]\d+": "blue", r"\d+W\d+": "magenta"}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What of a plan is printed: the fields as `Plan` has them, and the number of its merges."""

    layout: Layout
    sizes: tuple[tuple[int, ...], ...]
    schedule: str
    grids: Grids
    stages: tuple[StageCost, ...]
    values: Mapping[Ref, Value]
    meshes: tuple[MeshUse, ...]
    merges: int


def print_plan(plan: Shown) -> str:
    """The plan as plain text of at most WIDTH columns, the same whatever the terminal is."""
    console = Console(file=StringIO(), width=WIDTH, color_system=None, legacy_windows=False, _environ={})
    with console.capture() as printed:
        console.print(draw_plan(plan))
    return "\n".join(line.rstrip() for line in printed.get().splitlines())


def draw_plan(plan: Shown) -> RenderableType:
    """The plan for a rich console."""
    parts: list[RenderableType] = [Text(", ".join(_decisions(plan)), style="bold"), "", _stage_table(plan)]
    parts += [Text(_NOTE, style="dim"), ""]
    if plan.layout.idle:
        parts += [Text(f"idle: {', '.join(map(plan.layout.label, plan.layout.idle))}", style="yellow"), ""]
    if plan.meshes:
        lines = (line for mesh in plan.meshes for line in mesh.lines(plan.layout.stages[mesh.stage]))
        parts += [Text("\n".join(lines)), ""]
    if plan.values:
        parts += [Text(_states(plan)), ""]
    return Group(*parts, *_schedule(plan))


def _states(plan: Shown) -> str:
    """How many values are what over the parts of the batch, and how many of them are merged."""
    counts = Counter(str(value) for value in plan.values.values())
    listed = ", ".join(f"{count} {state}" for state, count in counts.most_common(SHOWN_STATES))
    more = f" and {len(counts) - SHOWN_STATES} other states" if len(counts) > SHOWN_STATES else ""
    return f"values: {listed}{more}; {plan.merges} are merged"


def _decisions(plan: Shown) -> Iterator[str]:
    shares, examples = plan.layout.shares, sum(map(sum, plan.sizes))
    even = all(abs(share - shares[0]) < 1e-9 for share in shares)
    yield _counted(len(shares), "replica") + ("" if even else f" ({', '.join(f'{share:.3g}' for share in shares)})")
    yield _counted(len(plan.layout.stages), "stage")
    yield _counted(len(plan.sizes[0]), "micro-batch", "es") + (f" of {_sizes(plan.sizes)}" if examples else "")
    bubbles = ", ".join(f"{check_grid(grid).bubble:.0%}" for grid in plan.grids.by_class)
    yield f"schedule {plan.schedule} (bubble {bubbles})"
    yield f"global batch {examples}" if examples else "no batch"


def _counted(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}" + ending * (count != 1)


def _sizes(sizes: Sequence[Sequence[int]]) -> str:
    """`4 examples` where all are equal; else the runs of equal ones, `2x3 + 1x2`, per replica where those differ."""
    if len({size for row in sizes for size in row}) == 1:
        return _counted(sizes[0][0], "example")
    rows = [" + ".join(f"{len(list(run))}x{size}" for size, run in groupby(row)) for row in sizes]
    return (rows[0] if len(set(rows)) == 1 else " | ".join(rows)) + " examples"


def _stage_table(plan: Shown) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column("stage", style="cyan", overflow="fold")
    table.add_column("ops", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("devices", style="green", overflow="fold")
    for head in ("FLOPs", "in", "out", "residuals", "live activations"):
        table.add_column(head, justify="right", no_wrap=True)
    for index, stage in enumerate(plan.stages):
        table.add_row(
            Text(stage.name or "the whole step"),
            f"{stage.ops:,}",
            f"{stage.parameters:,}",
            ", ".join(_devices(plan, index)),
            in_units(stage.flops, 1000, ("", "k", "M", "G", "T", "P", "E")),
            in_bytes(stage.bytes_in),
            in_bytes(stage.bytes_out),
            in_bytes(stage.residual_bytes),
            f"{stage.peak_live} x {in_bytes(stage.residual_bytes)} = {in_bytes(stage.peak_bytes)}",
        )
    return table


def _devices(plan: Shown, stage: int) -> Iterator[str]:
    layout = plan.layout
    meshes = (layout.mesh_of(replica, stage) for replica in range(layout.replicas))
    return ("|".join(map(layout.label, mesh)) for mesh in meshes)


def _schedule(plan: Shown) -> Iterator[Text]:
    """The grid of each pipeline class, or where they are too wide one line that says how to see them."""
    columns = max(map(len, str(plan.grids).splitlines()), default=0)
    if columns > GRID_WIDTH:
        yield Text(f"The schedule is {columns} columns wide: print(plan.grids) shows it.", style="dim")
        return
    classes = plan.layout.classes
    for index, (pattern, replicas) in enumerate(classes.items()):
        if len(classes) > 1:
            heading = f"replica{'s' * (len(replicas) > 1)} {', '.join(map(str, replicas))}:"
            yield Text("\n" * (index > 0) + heading, style="bold")
        text = Text(str(plan.grids.of(pattern)), no_wrap=True, overflow="ignore")
        for action, style in _ACTION_STYLES.items():
            text.highlight_regex(action, style)
        yield text
