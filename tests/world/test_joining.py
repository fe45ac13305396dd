"""Without `whale run`: mpiexec alone, and the hub in rank 0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from whale_tf.errors import DeviceError
from whale_tf.world.environment import Environment
from whale_tf.world.joining import join

# The address goes through a file here; in a training script it goes over MPI.
JOIN = """
import os, sys, time
from pathlib import Path
from whale_tf.world import Address, Hub, join, read_environment
environment, hub, file = read_environment(os.environ), None, Path("address")
rank = environment.rank
if rank == 0:
    hub = Hub(environment.size)
    Path("written").write_text(str(hub.start()))
    Path("written").rename(file)
while not file.exists():
    time.sleep(0.01)
member = join(environment, on_abort=lambda message: None, address=Address.parse(file.read_text()), hub=hub)
"""


def run(runs: Any, text: str) -> tuple[int, str, str]:
    runs.script("")
    script = runs.folder / "script.py"
    script.write_text(script.read_text().partition("import os, signal")[0] + JOIN + text)
    mpiexec = Path(sys.prefix, "bin", "mpiexec")
    if not mpiexec.exists():
        pytest.skip("mpich is not installed")
    done = subprocess.run(
        [mpiexec, "-n", "3", sys.executable, "-u", "script.py"],
        cwd=runs.folder,
        env={**os.environ, "WHALE_TF_TEST": runs.mark},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_ranks_meet_at_rank_0(runs: Any) -> None:
    code, output, errors = run(runs, "print(member.exchange('x', b'%d' % rank, 20))")
    assert (code, output.count("[b'0', b'1', b'2']"), errors) == (0, 3, "")  # mpiexec may mix their lines


def test_rank_0_keeps_its_hub_until_the_others_have_ended(runs: Any) -> None:
    text = "member.exchange('x', b'', 20)\nif rank:\n    while 0 not in member.left: time.sleep(0.01)\n"
    code, output, errors = run(runs, text + "    print(member.failure)")
    assert (code, output.count("None"), errors) == (0, 2, "")


def test_a_failure_ends_the_run(runs: Any) -> None:
    code, _, errors = run(runs, "if rank == 1: raise ValueError('no')\nmember.exchange('x', b'', 50)")
    assert code != 0
    assert "ValueError: no\n" in errors


def test_one_process_has_no_member() -> None:
    assert join(Environment(0, 1, "alone"), on_abort=print) is None


def test_without_an_address_it_says_where_one_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHALE_TF_HUB", raising=False)
    with pytest.raises(DeviceError) as caught:
        join(Environment(1, 2, "PMI_RANK, PMI_SIZE"), on_abort=print)
    assert str(caught.value) == (
        "rank 1 of 2 (PMI_RANK, PMI_SIZE) does not know where the hub of its world is.\n"
        "  WHALE_TF_HUB is not set, and no address was given\n"
        "  Start the processes with `whale run`, or give the address that rank 0's Hub.start() returned."
    )
