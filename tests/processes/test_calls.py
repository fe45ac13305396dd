"""Collectives outside steps: they meet by their labels, and where they do not, each rank's error says where all are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.processes.test_faults import of_rank
from tests.world.runs import Runs
from whale_tf.run import communicator

SCRIPT = str(Path(__file__).with_name("calling.py"))
SIZES = [2, pytest.param(4, marks=pytest.mark.long)]


def found(runs: Runs, scene: str, size: int, *, code: int = 0) -> list[list[str]]:
    """The lines that each rank prints."""
    ended, output, errors = runs.run("-n", str(size), "--timeout", "60", SCRIPT, scene)
    assert ended == code, output + errors
    return [of_rank(rank, output).splitlines() for rank in range(size)]


@pytest.mark.parametrize("size", SIZES)
def test_functions_in_another_order_give_their_own_results(runs: Runs, size: int) -> None:
    assert found(runs, "order", size) == [["wrong: [0, 0]"]] * size


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_functions_traced_in_another_order_meet(runs: Runs, size: int) -> None:
    total, largest = size * (size + 1) / 2, float(size)
    assert found(runs, "traced", size) == [[f"found: [{total}, {largest}, 1.0]"]] * size


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_iterations_that_overlap_meet_their_own(runs: Runs, size: int) -> None:
    assert found(runs, "iterations", size) == [["right: True"]] * size


@pytest.mark.parametrize("size", SIZES)
def test_one_function_serves_all_members(runs: Runs, size: int) -> None:
    ranks = sum(range(size))
    numbered = f"found: {[float(size * 10 * number + ranks) for number in range(4)]}"
    factors = ranks + size  # 1 + 2 + ...
    everybody = f"ranks {list(range(size))} of world 'processes'"
    for rank, lines in enumerate(found(runs, "places", size)):
        assert lines[:2] == [numbered] * 2
        assert lines[2] == f"loop: {float(factors**3)}, {float(size * factors**2 * (rank + 1))}"
        other = (rank + 1) % size
        refused = "InvalidArgumentError: 'WhaleAllReduce' is called"
        assert lines[3].startswith(f"{refused} by member {other} of {everybody}: this process is rank {rank}")
        assert lines[4].startswith(f"{refused} over communicator 99, and this process has made those from 0 to 0")


@pytest.mark.parametrize("size", SIZES)
def test_one_function_from_two_threads_is_refused_on_all_ranks(runs: Runs, size: int) -> None:
    refused = (
        "all-reduce 'total at calling.py:NN': rank 0 calls it while a call of the same label is under way, and the "
        "other ranks cannot tell the two apart. Call the function from one thread at a time, or give each call a label."
    )
    first, *others = [[without_lines(line) for line in lines] for lines in found(runs, "two_threads", size)]
    assert first == [f"InvalidArgumentError: {refused}"] * 2 + [f"{float(size)}"]
    assert others == [[f"InvalidArgumentError: rank 0 has ended the call: {refused}", f"{float(size)}"]] * (size - 1)


def without_lines(text: str) -> str:
    return re.sub(r"calling\.py:\d+", "calling.py:NN", text)


@pytest.mark.parametrize("size", SIZES)
def test_tensors_that_differ_are_told_on_all_ranks(runs: Runs, size: int) -> None:
    brought = [("float [3,2], sum", "float [2,3], sum"), ("float [2], sum", "double [2], sum")]
    brought.append(("float [2], sum", "float [2], max"))
    for lines in found(runs, "shapes", size):
        assert len(lines) == 3, lines
        for line, (first, other) in zip(lines, brought, strict=True):
            assert line.startswith("InvalidArgumentError: ")
            assert "do not fit together: " in line
            assert re.search(rf"\| rank 0: all-reduce '.*' of {re.escape(first)}, for ", line), line
            assert re.search(rf"\| rank 1: all-reduce '.*' of {re.escape(other)}, for ", line), line


@pytest.mark.parametrize("size", SIZES)
def test_ranks_gather_unequal_rows(runs: Runs, size: int) -> None:
    for lines in found(runs, "rows", size):
        assert lines[:-1] == ["right: True"] * 4
        assert lines[-1].startswith("InvalidArgumentError: ")
        for rank in range(size):
            waits = rf"\| rank {rank}: all-gather 'differs' of float \[\?,{3 + rank}\], for "
            assert re.search(waits, lines[-1]), lines


@pytest.mark.parametrize("size", SIZES)
def test_a_timeout_lists_where_each_rank_is(runs: Runs, size: int) -> None:
    waits = "all-reduce '{}, helper at calling.py:NN' of float [], {}, for "
    names = [("largest", "max"), *[("smallest", "min")] * (size - 1)]
    places = [waits.format(*name) for name in names]
    if size > 2:
        places[-1] = "in no call"
    for rank, lines in enumerate(found(runs, "late", size)):
        if places[rank] == "in no call":
            assert lines == []
            continue
        (line,) = map(without_lines, lines)
        assert line.startswith("DeadlineExceededError: "), line
        assert " waited 1 s for rank" in line
        assert all(f"| rank {other}: {place}" in line for other, place in enumerate(places)), line


@pytest.mark.parametrize("size", SIZES)
def test_a_call_whose_step_fails_ends_alone_and_on_all_ranks(runs: Runs, size: int) -> None:
    first, *others = [[without_lines(line) for line in lines] for lines in found(runs, "failed", size)]
    again = f"{float(size)}"
    assert first == ["wrong: 0", "InvalidArgumentError: divided by zero : Tensor had Inf values", again]
    ended = "rank 0 has ended the call: 'failing at calling.py:NN' of rank 0 ended because its step was cancelled"
    # TensorFlow gives another class to an UnavailableError of an operation that it does not know.
    assert others == [["wrong: 0", f"InternalError: {ended}", again]] * (size - 1)


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_a_cancelled_call_ends_alone_and_on_all_ranks(runs: Runs, size: int) -> None:
    first, *others = [[without_lines(line) for line in lines] for lines in found(runs, "cancelled", size)]
    ended = "'total at calling.py:NN' of rank 0 ended because its step was cancelled"
    assert first == [f"CancelledError: {ended}", "wrong: 0", f"{float(size)}"]
    told = f"InternalError: rank 0 has ended the call: {ended}"
    assert others == [["wrong: 0", told, f"{float(size)}"]] * (size - 1)


def test_a_script_that_has_started_mpi_for_one_thread_is_refused(runs: Runs) -> None:
    code, _, errors = runs.run("-n", "2", "--timeout", "60", SCRIPT, "serialized")
    assert code == 1
    assert (
        "DeviceError: the world of processes did not start.\n"
        "  the script has started MPI itself, with the thread level MPI_THREAD_SERIALIZED, and MPI_THREAD_MULTIPLE is "
        "needed: messages travel on a thread of their own.\n"
        f"  MPI is {communicator.find_mpi()}\n"
        "  Call whale.init() before the script starts MPI, or start MPI with MPI_THREAD_MULTIPLE"
    ) in errors  # what `whale run` tells of the rank that failed first; the other one may be told of it instead


@pytest.mark.parametrize("size", SIZES)
def test_sums_of_the_script_beside_those_of_whale(runs: Runs, size: int) -> None:
    assert found(runs, "beside", size) == [["wrong: [0, 0]"]] * size
