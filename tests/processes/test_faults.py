"""Scripts in which a rank fails: each run ends in bounded time, says who failed first, and where others waited."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.world.runs import Runs
from whale_tf.world.launch import mpiexec

SCRIPT = str(Path(__file__).with_name("training.py"))
KILLED = "killed by SIGKILL (signal 9)"
LINE = r"  at \S*training\.py:\d+ in (step|evaluate): .+\n"
# Where it noticed it; a rank that had not begun the step yet noticed it before.
SEEN = r"(  rank 0 noticed it in (AllReduce|AllGather|Broadcast|Send|Recv) '.+'\n(  .*\n)?" + LINE + ")?"
DIFFERENT = "All ranks must run the same script with the same arguments."


def of_rank(rank: int, text: str) -> str:
    """What one rank wrote, without its prefix."""
    start = f"[{rank}] "
    return "".join(line.removeprefix(start) for line in text.splitlines(keepends=True) if line.startswith(start))


def run(runs: Runs, fault: str, *options: str, size: int = 2) -> tuple[int, str, str, str]:
    """Exit code, output, errors of all ranks, and the last words of `whale run`."""
    code, output, errors = runs.run("-n", str(size), "--timeout", "30", *options, SCRIPT, fault)
    assert "whale run:" in errors, errors
    return code, output, errors, errors[errors.index("whale run:") :]


def check_told(runs: Runs, fault: str, *, code: int, first: str, other: str) -> None:
    """Rank 1 fails, `whale run` says so, and rank 0 says where it waited for it."""
    found, output, errors, words = run(runs, fault)
    assert words == f"whale run: rank 1 failed first: {first}\n  rank 0: exit code 1\n", errors
    assert found == code
    assert re.search(rf"RunError: {re.escape(other)}\.\n{SEEN}  Look at the output of rank 1", of_rank(0, errors)), (
        errors
    )
    assert "step 2 " in of_rank(0, output)
    assert "step 4 " not in output


def test_an_operation_that_fails_on_one_rank(runs: Runs) -> None:
    told = "RunError: h : Tensor had NaN values"
    check_told(runs, "not_finite", code=1, first=f"{told} (exit code 1)", other=f"rank 1 failed: {told}")


@pytest.mark.long
def test_an_operation_that_fails_inside_a_stage(runs: Runs) -> None:
    code, _, errors, words = run(runs, "not_finite_in_a_stage")
    assert code == 1
    assert words.startswith("whale run: rank 1 failed first: RunError: h : Tensor had NaN values (exit code 1)\n")
    assert re.search(
        r"RunError: h : Tensor had NaN values\.\n  InvalidArgumentError in 'CheckNumerics.*'\n"
        rf"  stage 1, forward of micro-batch 6: examples 12 to 13 of 16, counted from 0\n{LINE}"
        r"  The run ends with it in all processes\.\n",
        of_rank(1, errors),
    ), errors
    assert re.search(rf"RunError: rank 1 failed: RunError: h : .*\n{SEEN}", of_rank(0, errors)), errors
    last = errors[: errors.index("whale run:")].rpartition("Traceback (most recent call last):")[2]
    assert "loss = step(x)" in last  # the first rank's own, once more, from the user's line on


@pytest.mark.long
@pytest.mark.parametrize("fault", ["killed_before", "killed_inside", "killed_between_micro_batches"])
def test_a_killed_rank(runs: Runs, fault: str) -> None:
    check_told(runs, fault, code=137, first=KILLED, other=f"rank 1 died: {KILLED}")


@pytest.mark.long
def test_a_rank_killed_after_its_last_step(runs: Runs) -> None:
    code, output, _, words = run(runs, "killed_after", "--grace", "60")
    assert code == 137
    assert words.startswith(f"whale run: rank 1 failed first: {KILLED}\n")
    assert len(output.splitlines()) == 12  # six steps of two ranks: all were done


@pytest.mark.long
def test_a_rank_that_raises_between_steps(runs: Runs) -> None:
    code, _, errors, words = run(runs, "raises")
    said = "ValueError: there is no such file"
    assert code == 1
    assert words == f"whale run: rank 1 failed first: {said} (exit code 1)\n  rank 0: exit code 1\n"
    assert f"RunError: rank 1 failed: {said}.\n" in of_rank(0, errors)
    assert re.search(r'^  File ".*training.py", line \d+, in strike\n', errors, re.MULTILINE), errors


@pytest.mark.long
def test_a_rank_that_exits(runs: Runs) -> None:
    code, _, errors, words = run(runs, "exits")
    assert code == 3
    assert words == "whale run: rank 1 failed first: exit code 3\n  rank 0: exit code 1\n"
    assert "RunError: rank 1 failed: exit code 3.\n" in of_rank(0, errors)


@pytest.mark.long
def test_a_rank_that_has_fewer_steps(runs: Runs) -> None:
    code, _, errors, _ = run(runs, "ends_early")
    assert code == 1
    assert (
        "RunError: rank 1 ended before call 5, in which all take part.\n  rank 0: call of step 'step' (0), "
        in of_rank(0, errors)
    )
    assert "give each the same script and as much data.\n" in errors


@pytest.mark.long
def test_a_rank_that_is_late(runs: Runs) -> None:
    code, _, errors, words = run(runs, "late", "--timeout", "5", "--grace", "2")
    assert code == 1
    assert re.match(
        r"whale run: rank 0 failed first: RunError: .+ waited 5 s for rank 1 \(exit code 1\)\n"
        r"  rank 1: still ran 2 s later, and was killed\n$",
        words,
    ), words
    assert re.search(rf"waited 5 s for rank 1\.\n(  .*\n)+{LINE}  Look at what", of_rank(0, errors)), errors


@pytest.mark.parametrize(
    ("fault", "details"),
    [
        pytest.param(
            "other_constant", [r"rank 0: line \d+: .*numbers=\(1.0\)", r"rank 1: line \d+: .*numbers=\(0.5\)"]
        ),
        pytest.param("other_width", [r"rank 0: .*\[4,16\]", r"rank 1: .*\[4,24\]"], marks=pytest.mark.long),
    ],
)
def test_ranks_with_different_programs(runs: Runs, fault: str, details: list[str]) -> None:
    code, _, errors, words = run(runs, fault)
    assert code == 1
    assert "PlanError: the processes do not run the same step 'step' (exit code 1)\n" in words
    for rank in range(2):
        for detail in details:
            assert re.search(detail, of_rank(rank, errors)), errors


def called(own: str, examples: int, other: str, its_examples: int) -> list[str]:
    """What is said of two ranks that call different steps, or with different batches."""
    words = r"rank {}: call of step '{}' \(\d\), [\w ]+, {} examples with digest \w{{16}}\n"
    return [words.format(0, own, examples), words.format(1, other, its_examples)]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param("other_shuffle", called("step", 16, "step", 16)),
        pytest.param("other_order", called("step", 16, "evaluate", 16), marks=pytest.mark.long),
        pytest.param("other_order_untraced", called("step", 16, "evaluate", 16), marks=pytest.mark.long),
        pytest.param("other_batch", called("step", 16, "step", 24), marks=pytest.mark.long),
    ],
)
def test_ranks_with_different_calls(runs: Runs, fault: str, said: list[str]) -> None:
    code, _, errors, words = run(runs, fault)
    assert code == 1
    assert re.search(r"failed first: RunError: ranks differ in call \d \(exit code 1\)\n", words), words
    for rank in range(2):
        own = of_rank(rank, errors)
        assert re.search(r"RunError: ranks differ in call \d\.\n", own), errors
        assert all(re.search(line, own) for line in said), errors
        assert DIFFERENT in own


@pytest.mark.long
def test_a_world_that_does_not_fit_the_plan(runs: Runs) -> None:
    code, _, errors, words = run(runs, "does_not_fit", size=3)
    assert code == 1
    assert "DeviceError: the step asks for 4 devices and there are 3 (exit code 1)\n" in words
    for rank in range(3):
        assert "DeviceError: the step asks for 4 devices and there are 3.\n" in of_rank(rank, errors), errors
    assert "in replica(2) opened at " in errors


@pytest.mark.long
def test_a_step_called_after_the_end_fails_at_once(runs: Runs) -> None:
    _, output, errors, _ = run(runs, "goes_on")
    said = of_rank(0, output)
    assert len(re.findall(rf"after \d\.\d s: rank 1 died: {re.escape(KILLED)}\.\n", said)) == 2, said + errors
    assert re.search(r"after 0\.0 s: rank 1 died", said), said
    assert "runs normally" not in said


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("killed_before", ""),
        ("raises", "ValueError: there is no such file"),
        ("exits", "RunError: rank 1 ended "),
        ("ends_early", "RunError: rank 1 ended "),
    ],
)
def test_plain_mpiexec_ends_too(runs: Runs, fault: str, said: str) -> None:
    """Where rank 1 dies or fails, mpiexec may kill rank 0 before it tells its error."""
    runs.environment["WHALE_TF_TIMEOUT"] = "30"
    code, output, errors = runs.end(runs.start_command(mpiexec(), "-n", "2", sys.executable, SCRIPT, fault))
    assert code != 0
    assert said in output + errors
    assert "step 4 " not in output


def test_nothing_fails_without_a_fault(runs: Runs) -> None:
    code, output, _ = runs.run("-n", "2", SCRIPT, "none")
    assert code == 0
    assert sorted(of_rank(0, output).splitlines()) == sorted(of_rank(1, output).splitlines())
    assert len(output.splitlines()) == 12
