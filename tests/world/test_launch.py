"""`whale run` with real processes: what it prints, how it ends, what it leaves behind."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

EXCHANGE = "print(b''.join(member.exchange('numbers', bytes([65 + rank]), 20)).decode())\n"
HERE = "at_start = member.exchange('start', b'', 20)\n"


def of_rank(rank: int, text: str) -> str:
    """What one rank printed, without its prefix."""
    start = f"[{rank}] "
    return "".join(line.removeprefix(start) for line in text.splitlines(keepends=True) if line.startswith(start))


def own_words(errors: str) -> str:
    """What `whale run` itself said, at the end."""
    return errors[errors.index("whale run:") :]


def test_all_ranks_see_all_payloads_in_order(runs: Any) -> None:
    code, output, errors = runs.run("-n", "4", runs.script(EXCHANGE))
    assert sorted(output.splitlines()) == [f"[{rank}] ABCD" for rank in range(4)]
    assert (code, errors) == (0, "")


def test_one_process_needs_no_mpiexec_and_no_hub(runs: Any) -> None:
    (runs.folder / "alone.py").write_text("import sys, os; print(sys.argv, os.environ['WHALE_TF_SIZE'])")
    code, output, errors = runs.run("-n", "1", "alone.py", "-x", "--grace", "a b")
    assert (code, output, errors) == (0, "[0] ['alone.py', '-x', '--grace', 'a b'] 1\n", "")


def test_a_module_runs_as_main(runs: Any) -> None:
    (runs.folder / "module.py").write_text("import sys; print(__name__, sys.argv[1:])")
    code, output, _ = runs.run("-n", "2", "-m", "module", "-n", "7")
    assert (code, sorted(output.splitlines())) == (0, [f"[{rank}] __main__ ['-n', '7']" for rank in range(2)])


def test_lines_never_mix(runs: Any) -> None:
    text = "for i in range(300): sys.stdout.write(str(rank)); sys.stdout.write('x' * 500); sys.stdout.write('\\n')\n"
    code, output, _ = runs.run("-n", "4", runs.script(text))
    assert code == 0
    assert sorted(output.splitlines()) == sorted(f"[{rank}] {rank}{'x' * 500}" for rank in range(4) for _ in range(300))


def test_each_rank_has_its_log(runs: Any) -> None:
    code, output, _ = runs.run(
        "-n", "2", "--log-dir", "logs/run", runs.script("print('of', rank); print('no end', end='')")
    )
    assert code == 0
    for rank in range(2):
        assert Path(runs.folder, "logs", "run", f"rank-{rank}.log").read_text() == f"of {rank}\nno end\n"
        assert of_rank(rank, output) == f"of {rank}\nno end\n"


def test_sigkill_is_told_to_all(runs: Any) -> None:
    text = HERE + "if rank == 2: os.kill(os.getpid(), signal.SIGKILL)\n" + EXCHANGE
    code, output, errors = runs.run("-n", "4", runs.script(text))
    assert (code, output) == (137, "")
    for rank in (0, 1, 3):
        assert of_rank(rank, errors).endswith(
            "whale_tf.errors.RunError: rank 2 died: killed by SIGKILL (signal 9).\n"
            f"  rank {rank} waited in the exchange 'numbers'\n"
            "  Look at the output of rank 2: it comes first.\n"
        )
    assert own_words(errors) == (
        "whale run: rank 2 failed first: killed by SIGKILL (signal 9)\n"
        "  rank 0: exit code 1\n  rank 1: exit code 1\n  rank 3: exit code 1\n"
    )


def test_an_exception_is_told_to_all_and_shown_once_more_at_the_end(runs: Any) -> None:
    text = HERE + "if rank == 1: raise ValueError('bad number\\nsecond line')\n" + EXCHANGE
    code, _, errors = runs.run("-n", "3", runs.script(text))
    assert code == 1
    assert of_rank(0, errors).endswith(
        "whale_tf.errors.RunError: rank 1 failed: ValueError: bad number.\n"
        "  rank 0 waited in the exchange 'numbers'\n"
        "  Look at the output of rank 1: it comes first.\n"
    )
    assert own_words(errors) == (
        "whale run: rank 1 failed first: ValueError: bad number (exit code 1)\n"
        "  rank 0: exit code 1\n  rank 2: exit code 1\n"
    )
    unprefixed = re.sub(r"^\[\d\] .*\n", "", errors, flags=re.MULTILINE)
    line = text.splitlines()[1]
    assert re.fullmatch(
        r'Traceback \(most recent call last\):\n  File ".*script.py", line \d+, in <module>\n'
        rf"    {re.escape(line)}\n( +\^+\n)?ValueError: bad number\nsecond line\nwhale run: (.*\n)+",
        unprefixed,
    )


def test_an_exception_before_joining_is_told_too(runs: Any) -> None:
    script = Path(runs.folder, runs.script(EXCHANGE))
    early = "import os\nif os.environ['PMI_RANK'] == '1': raise KeyError('early')\n"
    script.write_text(early + script.read_text())
    code, _, errors = runs.run("-n", "2", "script.py")
    assert code == 1
    assert "RunError: rank 1 failed: KeyError: 'early'.\n" in of_rank(0, errors)
    assert (
        own_words(errors) == "whale run: rank 1 failed first: KeyError: 'early' (exit code 1)\n  rank 0: exit code 1\n"
    )


def test_an_exception_in_a_thread_ends_the_run(runs: Any) -> None:
    text = "if rank == 0: threading.Thread(target=lambda: 1 / 0).start()\nmember.exchange('never', b'', 20)\n"
    text = text.replace("member.ex", "rank or time.sleep(30)\nmember.ex")
    code, _, errors = runs.run("-n", "2", "--grace", "0.5", runs.script(text))
    assert code == 137
    assert "RunError: rank 0 failed: ZeroDivisionError: division by zero.\n" in of_rank(1, errors)
    assert own_words(errors) == (
        "whale run: rank 0 failed first: ZeroDivisionError: division by zero (killed by SIGKILL (signal 9))\n"
        "  rank 1: exit code 1\n"
    )


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("sys.exit(3)", 3, "failed: exit code 3"),
        ("os._exit(4)", 4, "failed: exit code 4"),
        ("os._exit(0)", 1, "died: it ended without a goodbye (exit code 0)"),
        ("os.abort()", 134, "died: killed by SIGABRT (signal 6)"),
    ],
)
def test_an_end_that_is_no_exception(runs: Any, how: str, code: int, told: str) -> None:
    found, _, errors = runs.run("-n", "2", runs.script(HERE + f"if rank == 1: {how}\n" + EXCHANGE))
    assert found == code
    assert f"RunError: rank 1 {told}.\n" in of_rank(0, errors)


def test_a_rank_that_ends_early_is_named(runs: Any) -> None:
    code, _, errors = runs.run("-n", "3", runs.script(HERE + "if rank == 2: sys.exit()\n" + EXCHANGE))
    assert code == 1
    for rank in (0, 1):
        assert of_rank(rank, errors).endswith(
            "RunError: rank 2 ended while others wait in the exchange 'numbers'.\n"
            "  ranks 0 and 1 waited\n"
            "  All ranks must take part in the same number of steps: give each the same script and as much data.\n"
        )


def test_a_late_rank_is_named_and_killed_after_the_grace(runs: Any) -> None:
    text = HERE + "if rank == 1: time.sleep(50)\nmember.exchange('numbers', b'', 0.5)\n"
    code, _, errors = runs.run("-n", "2", "--grace", "0.5", runs.script(text))
    assert code == 1
    assert own_words(errors) == (
        "whale run: rank 0 failed first: RunError: rank 1 did not arrive in the exchange 'numbers' within 0.5 s"
        " (exit code 1)\n  rank 1: still ran 0.5 s later, and was killed\n"
    )


def test_different_exchanges_are_named(runs: Any) -> None:
    code, _, errors = runs.run("-n", "3", runs.script("member.exchange('a' if rank == 1 else 'b', b'', 20)\n"))
    assert code == 1
    assert of_rank(2, errors).endswith(
        "RunError: ranks ask for different exchanges.\n  ranks 0 and 2: 'b'\n  rank 1: 'a'\n"
        "  All ranks must run the same script with the same arguments.\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all(runs: Any, number: signal.Signals) -> None:
    process = runs.start("-n", "3", runs.script("print('up')\ntime.sleep(50)\n"))
    for _ in range(3):
        assert process.stdout.readline().endswith("up\n")
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert own_words(errors) == f"whale run: ended by {number.name}\n"


def test_the_second_signal_waits_for_nobody(runs: Any) -> None:
    # Short sleeps: Python runs a handler between calls, so that of a signal just before a sleep waits for its end.
    text = (
        "signal.signal(signal.SIGTERM, lambda *_: print('no', flush=True))\nprint('up')\nwhile True: time.sleep(0.05)\n"
    )
    process = runs.start("-n", "2", "--grace", "40", runs.script(text))
    for word in ("up", "no"):
        for _ in range(2):
            assert process.stdout.readline().endswith(f"{word}\n")
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_nothing_survives_a_killed_whale_run(runs: Any) -> None:
    process = runs.start("-n", "2", runs.script("print('up')\ntime.sleep(50)\n"))
    for _ in range(2):
        assert process.stdout.readline().endswith("up\n")
    process.kill()
    process.communicate(timeout=30)
    assert runs.wait_until_gone() == []


def test_what_ranks_started_ends_with_them(runs: Any) -> None:
    text = "import subprocess\nfor own in (True, False): subprocess.Popen(['sleep', '50'], start_new_session=own)\n"
    assert runs.run("-n", "2", runs.script(text))[0] == 0
    assert runs.wait_until_gone(2.0) == []


def test_the_hosts_are_used(runs: Any) -> None:
    code, output, errors = runs.run("--hosts", "localhost:2,127.0.0.1:1", runs.script(EXCHANGE))
    assert (code, errors) == (0, "")
    assert sorted(output.splitlines()) == [f"[{rank}] ABC" for rank in range(3)]


def test_a_launcher_carries_it_to_other_hosts(runs: Any) -> None:
    """Here it is a script in the place of ssh: it takes the options, the host and the command, and stays."""
    carrier = runs.folder / "carrier"
    carrier.write_text('#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nshift\nexec sh -c "$*"\n')
    carrier.chmod(0o755)
    (runs.folder / "hosts").write_text("# two of them\nsomewhere slots=2\nelsewhere:1\n")
    options = f"-launcher ssh -launcher-exec {carrier} -localhost 127.0.0.1"
    script = runs.script("print(os.environ['MPI_LOCALNRANKS'])\n" + EXCHANGE)
    code, output, errors = runs.run("--hostfile", "hosts", "--mpiexec-options", options, script)
    assert (code, errors) == (0, "")
    assert [of_rank(rank, output) for rank in range(3)] == ["2\nABC\n", "2\nABC\n", "1\nABC\n"]


def test_ranks_that_cannot_be_started_are_named(runs: Any) -> None:
    script = runs.script("")
    options = "-launcher ssh -launcher-exec /bin/false"
    code, _, errors = runs.run("--hosts", "somewhere:2", "--mpiexec-options", options, script)
    assert code == 255
    assert own_words(errors) == "whale run: mpiexec ended before ranks 0 and 1, with exit code 255\n"


def test_ranks_that_do_not_start_in_time_are_named(runs: Any) -> None:
    script = runs.script("")
    carrier = runs.folder / "carrier"
    carrier.write_text("#!/bin/sh\nexec sleep 50\n")
    carrier.chmod(0o755)
    options = f"-launcher ssh -launcher-exec {carrier}"
    code, _, errors = runs.run("--hosts", "somewhere:2", "--timeout", "0.5", "--mpiexec-options", options, script)
    assert code == 1
    assert own_words(errors).splitlines()[0] == "whale run: ranks 0 and 1 did not start within 0.5 s"


def test_without_mpiexec_it_says_what_to_install(runs: Any) -> None:
    runs.first = "import os\nsys.prefix = os.environ['PATH'] = '/nowhere'\n"
    assert runs.run("-n", "2", runs.script("")) == (
        1,
        "",
        "Error: there is no mpiexec to start several processes with.\n"
        "  it is neither in /nowhere/bin nor in PATH\n"
        "  pip install whale_tf[mpi]\n",
    )
