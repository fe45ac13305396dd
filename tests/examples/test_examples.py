"""The examples, run as a user runs them: each a program of its own, from the root of the tree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
SMALL_GPT = ("--steps=3", "--batch=16", "--sequence=16", "--width=16", "--sample=5")


def run(example: str, *arguments: str | Path, seconds: int = 240) -> str:
    """What an example prints. The bound on its time only ends what hangs; a busy machine stays far below it."""
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "CUDA_VISIBLE_DEVICES": "-1",  # logical CPU devices: each example makes as many as it needs
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, f"examples/{example}.py", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def number(pattern: str, text: str) -> float:
    """The one number that the pattern's group finds."""
    found = re.findall(pattern, text)
    assert len(found) == 1, f"{pattern} is found {len(found)} times in:\n{text}"
    return float(found[0])


def test_gpt_trains_and_writes_a_timeline_that_can_be_drawn(tmp_path: Path) -> None:
    printed = run("train_gpt", *SMALL_GPT, "--out", tmp_path)
    assert number(r"at first, ([\d.]+) at last", printed) < 7
    timeline, picture = tmp_path / "timeline.json", tmp_path / "timeline.svg"
    names = {event["name"] for event in json.loads(timeline.read_text())["traceEvents"] if event["ph"] == "X"}
    assert {f"{j}{kind}{i}" for j in range(2) for kind in "FB" for i in range(4)} <= names
    assert " on 4 devices" in run("draw_timeline", timeline, picture)
    assert ElementTree.parse(picture).getroot().tag == f"{SVG}svg"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--schedule=gpipe",),
        ("--schedule=zero_bubble",),
        ("--schedule=interleaved", "--stages=4", "--layers=4"),
        ("--replicas=1", "--stages=4", "--layers=5"),
        ("--replicas=4", "--stages=1", "--micro-batches=1"),
    ],
    ids=" ".join,
)
@pytest.mark.long
def test_gpt_trains_in_every_arrangement(arguments: tuple[str, ...], tmp_path: Path) -> None:
    printed = run("train_gpt", *SMALL_GPT, *arguments, "--out", tmp_path)
    assert number(r"at first, ([\d.]+) at last", printed) < 7


@pytest.mark.long
def test_gpt_learns(tmp_path: Path) -> None:
    printed = run("train_gpt", "--out", tmp_path, seconds=900)
    assert number(r"loss ([\d.]+) at first", printed) > 5
    assert number(r"at first, ([\d.]+) at last", printed) < 2


def test_gpt_refuses_more_stages_than_layers() -> None:
    with pytest.raises(AssertionError, match="--stages 3 needs as many --layers or more, and there are 2"):
        run("train_gpt", "--stages=3")


def test_digits_trains() -> None:
    printed = run("train_digits", "--epochs=1")
    assert number(r"test accuracy ([\d.]+)%", printed) > 20


@pytest.mark.long
def test_digits_learns() -> None:
    assert number(r"test accuracy ([\d.]+)%", run("train_digits")) >= 97


def test_module_learns() -> None:
    assert number(r"test accuracy ([\d.]+)%", run("train_module")) >= 95


def test_draw_timeline_draws_one_row_per_device_and_one_box_per_action(tmp_path: Path) -> None:
    events = [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "CPU:0 <first>"}},
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "CPU:1"}},
        {"ph": "X", "name": "0F0", "pid": 0, "tid": 0, "ts": 1000, "dur": 500},
        {"ph": "X", "name": "1B0", "pid": 1, "tid": 0, "ts": 1500, "dur": 1000},
        {"ph": "X", "name": "U", "pid": 0, "tid": 0, "ts": 2500, "dur": 250},
        {"ph": "X", "name": "all-reduce", "pid": 1, "tid": 0, "ts": 2500, "dur": 100},
    ]
    timeline, picture = tmp_path / "timeline.json", tmp_path / "pictures" / "timeline.svg"
    timeline.write_text(json.dumps({"traceEvents": events}))
    assert "4 actions on 2 devices" in run("draw_timeline", timeline, picture)
    drawn = ElementTree.parse(picture).getroot()
    titles = [title.text for title in drawn.iter(f"{SVG}title")]
    assert titles == [
        "0F0: forward, 0.50 ms",
        "1B0: backward, 1.00 ms",
        "U: update, 0.25 ms",
        "all-reduce: other, 0.10 ms",
    ]
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert texts[:2] == ["CPU:0 <first>", "CPU:1"]
    assert {"0F0", "1B0", "U", "0.5 ms", "forward", "backward", "update", "other"} <= set(texts)


def test_draw_timeline_says_what_an_empty_timeline_lacks(tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.json"
    timeline.write_text('{"traceEvents": []}')
    with pytest.raises(AssertionError, match=r"holds no actions: run the step before step\.timeline"):
        run("draw_timeline", timeline, tmp_path / "timeline.svg")
