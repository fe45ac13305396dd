"""The cases of one process in several: choices of in_processes.py under `whale run`, each reported by itself.

A launch takes seconds to start, so that it runs many choices; what differs is told as `case at layout, rank 1`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.equivalence.in_processes import choices
from tests.world.runs import ROOT, Runs, checked

SCRIPT = str(Path(__file__).with_name("in_processes.py"))
# Of the transformer, which comes first: replicas that are cut differently, replicas, stages, shares; both.
REPRESENTATIVE = {2: (0, 4, 5, 8), 4: (0, 3, 7)}
LAUNCHES = 8  # in which all choices are run


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    environment = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    yield from checked(Runs(tmp_path, environment=environment, bound_seconds=550.0))


def check(runs: Runs, size: int, numbers: list[int]) -> None:
    """Runs the choices of these numbers in `size` processes, and fails with all that differs on any of them."""
    chosen = list(choices(size))
    arguments = [str(runs.folder), str(size), *map(str, numbers)]
    code, _, errors = runs.run("-n", str(size), "--timeout", "60", SCRIPT, *arguments)
    wrong = []
    for rank in range(size):
        file = runs.folder / f"{rank}.jsonl"
        found = dict(json.loads(line) for line in file.read_text().splitlines()) if file.exists() else {}
        for number in numbers:
            case, layout = chosen[number]
            for text in found.get(number, ["it was not run"]):
                wrong.append(f"{case} at {layout} (choice {number}), rank {rank}: {text}")
    assert not wrong, "\n".join([*wrong, errors[-4000:]])
    assert code == 0, errors


@pytest.mark.parametrize("size", [2, 4])
def test_a_transformer_is_the_same_in_many_processes(runs: Runs, size: int) -> None:
    check(runs, size, list(REPRESENTATIVE[size]))


@pytest.mark.parametrize("size", [2, 4])
def test_members_of_a_mesh_are_the_same_in_many_processes(runs: Runs, size: int) -> None:
    check(runs, size, [number for number, (_, layout) in enumerate(choices(size)) if layout.split > 1])


@pytest.mark.long
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.longest) for part in range(1, LAUNCHES))])
@pytest.mark.parametrize("size", [2, 4])
def test_each_case_is_the_same_in_many_processes(runs: Runs, size: int, part: int) -> None:
    count = len(list(choices(size)))
    check(runs, size, list(range(part, count, LAUNCHES)))


def test_what_one_process_does_many_do_too(runs: Runs) -> None:
    """Feeding, retracing, uneven shares, variables that differ, and what is called beside the step."""
    code, output, errors = runs.run("-n", "2", "--timeout", "60", str(Path(SCRIPT).with_name("together.py")))
    assert code == 0, errors
    assert output.count("all is the same\n") == 2, output
