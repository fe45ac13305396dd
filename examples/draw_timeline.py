"""Draws the timeline that `step.timeline` wrote as an SVG picture: one row per device, one box per action.

    python examples/draw_timeline.py out/timeline.json docs/timeline.svg

The colour says what kind of action it is (forward, backward, update, transfer), the label which stage and micro-batch.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

KINDS: Mapping[str, tuple[str, str]] = {
    "F": ("forward", "#7fb3e6"),
    "B": ("backward", "#8fce9b"),
    "I": ("input gradients", "#8fce9b"),
    "W": ("weight gradients", "#c5e59b"),
    "U": ("update", "#f2b56b"),
    "S": ("send", "#d9d9d9"),
    "R": ("receive", "#d9d9d9"),
}
OTHER = ("other", "#c9b8e8")
# `2F0` is stage 2, forward, micro-batch 0; an update has no micro-batch, and may have no stage.
ACTION = re.compile(r"(?P<stage>\d*)(?P<kind>[FBIWUSR])(?P<micro_batch>\d*)")

WIDTH, ROW, GAP, MARGIN, LETTER = 1000, 34, 6, 16, 7.0  # pixels; LETTER is the width of one
SMALL, APART = 4.9, 10  # the width of a small letter; what lies between replicas besides the gap


@dataclass(frozen=True)
class Box:
    """One action on one device.

    Attributes:
      row: (process, thread) of the trace.
      name: as in the schedule.
      start_us, duration_us: microseconds.
      place: the replica and the stage, as far as they are known: `replica 0`, `stage 1`.
    """

    row: tuple[int, int]
    name: str
    start_us: float
    duration_us: float
    place: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[str, str]:
        """What it does and its colour."""
        found = ACTION.fullmatch(self.name)
        return KINDS[found["kind"]] if found else OTHER


def main() -> None:
    """Reads one file, writes the other."""
    parser = argparse.ArgumentParser(description="Draws a timeline as an SVG picture.")
    parser.add_argument("timeline", type=Path, help="what step.timeline wrote")
    parser.add_argument("picture", type=Path, help="the SVG file to write")
    options = parser.parse_args()
    events = json.loads(options.timeline.read_text())["traceEvents"]
    boxes = read_boxes(events)
    if not boxes:
        parser.error(f"{options.timeline} holds no actions: run the step before step.timeline")
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(boxes, row_names(events, boxes)))
    print(f"{options.picture}: {len(boxes)} actions on {len({box.row for box in boxes})} devices")


def read_boxes(events: Sequence[Mapping[str, Any]]) -> list[Box]:
    """The complete events (`ph` is X) of a Chrome trace, by time; longer ones first, so that inner ones lie on top."""
    boxes = [
        Box(
            (event.get("pid", 0), event.get("tid", 0)),
            event["name"],
            float(event["ts"]),
            float(event["dur"]),
            tuple(f"{part} {event['args'][part]}" for part in ("replica", "stage") if part in event.get("args", {})),
        )
        for event in events
        if event.get("ph") == "X"
    ]
    return sorted(boxes, key=lambda box: (box.start_us, -box.duration_us))


def row_names(events: Sequence[Mapping[str, Any]], boxes: Sequence[Box]) -> dict[tuple[int, int], str]:
    """What to write before each row, in order: of process and thread, the names that tell rows apart."""
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    rows = sorted({box.row for box in boxes})
    several_processes = len({process for process, _ in rows}) > 1
    names = {}
    for row in rows:
        process = str(processes.get(row[0], f"device {row[0]}"))
        thread = str(threads.get(row, f"thread {row[1]}"))
        several_threads = sum(process == row[0] for process, _ in rows) > 1
        names[row] = " ".join([process] * (several_processes or not several_threads) + [thread] * several_threads)
    return names


def row_places(boxes: Sequence[Box]) -> dict[tuple[int, int], str]:
    """For each row the replica and the stages that it runs, as far as the trace says: `replica 0, stage 1`."""
    found: dict[tuple[int, int], dict[str, None]] = {}
    for box in boxes:
        found.setdefault(box.row, {}).update(dict.fromkeys(box.place))
    return {row: ", ".join(sorted(parts)) for row, parts in found.items()}


def draw(boxes: Sequence[Box], names: Mapping[tuple[int, int], str]) -> str:
    """The picture: rows over a ruler in milliseconds, and what the colours mean."""
    places = row_places(boxes)
    left = MARGIN + max(max(LETTER * len(name), SMALL * len(places[row])) for row, name in names.items()) + MARGIN
    begin = min(box.start_us for box in boxes)
    length = max(box.start_us + box.duration_us for box in boxes) - begin or 1.0
    per_us = (WIDTH - left - 2 * MARGIN) / length
    tops = _tops(list(names), places)
    bottom = max(tops.values()) + ROW + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 62}" '
        'font-family="ui-sans-serif, system-ui, Helvetica, Arial, sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for row, name in names.items():
        parts.append(_text(MARGIN, tops[row] + (14 if places[row] else ROW / 2 + 4), name))
        if places[row]:
            parts.append(_text(MARGIN, tops[row] + 27, places[row], fill="#777", size=9))
        width = length * per_us
        parts.append(f'<rect x="{left:.1f}" y="{tops[row]}" width="{width:.1f}" height="{ROW}" fill="#f3f4f6"/>')
    parts.append(_ruler(left, bottom, length, per_us))
    for box in boxes:
        parts.append(_box(box, left + (box.start_us - begin) * per_us, tops[box.row], box.duration_us * per_us))
    parts.append(_legend(left, bottom + 38, boxes))
    return "\n".join([*parts, "</svg>", ""])


def _tops(rows: Sequence[tuple[int, int]], places: Mapping[tuple[int, int], str]) -> dict[tuple[int, int], int]:
    """Where each row begins; replicas lie apart."""
    tops: dict[tuple[int, int], int] = {}
    top = MARGIN
    for above, row in zip([None, *rows], rows, strict=False):
        if above is not None:
            another = places[above].split(",")[0] != places[row].split(",")[0]
            top += ROW + GAP + another * APART
        tops[row] = top
    return tops


def _box(box: Box, x: float, y: float, width: float) -> str:
    meaning, colour = box.kind
    label = ""
    if width >= LETTER * len(box.name):
        label = _text(x + width / 2, y + ROW / 2 + 4, box.name, anchor="middle")
    return (
        f"<g><title>{escape(box.name)}: {meaning}, {box.duration_us / 1000:.2f} ms</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{max(width, 1):.1f}" height="{ROW}" fill="{colour}" '
        f'stroke="white" stroke-width="0.8"/>{label}</g>'
    )


def _ruler(left: float, y: float, length_us: float, per_us: float) -> str:
    """About eight lines at 1, 2 or 5 times a power of ten."""
    sizes = (factor * 10.0**power for power in range(-1, 10) for factor in (1, 2, 5))
    apart = next(size for size in sizes if size >= length_us / 8)
    marks = [k * apart for k in range(int(length_us / apart) + 1)]
    places = [f'x1="{left + m * per_us:.1f}" x2="{left + m * per_us:.1f}"' for m in marks]
    lines = [f'<line {place} y1="{MARGIN - 4}" y2="{y + 3}" stroke="#d5d8dc" stroke-width="0.7"/>' for place in places]
    texts = [_text(left + m * per_us, y + 16, f"{m / 1000:g} ms", anchor="middle", fill="#777") for m in marks]
    return "\n".join(lines + texts)


def _legend(x: float, y: float, boxes: Sequence[Box]) -> str:
    parts = []
    present = {box.kind for box in boxes}
    for meaning, colour in [kind for kind in dict.fromkeys([*KINDS.values(), OTHER]) if kind in present]:
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 18, y + 10, meaning))
        x += 18 + LETTER * (len(meaning) + 2)
    return "\n".join(parts)


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#222", size: int = 11) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}" font-size="{size}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
