"""Runs of `whale run` as a user starts them, with a check that nothing of them stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BOUND_SECONDS = 60.0

# These tests need nothing of TensorFlow, whose import takes seconds for each rank: the package without its __init__.
LIGHT = f"""
import sys, types
sys.modules["whale_tf"] = types.ModuleType("whale_tf")
sys.modules["whale_tf"].__path__ = [{str(ROOT / "whale_tf")!r}]
"""
JOIN = """
import os, signal, threading, time
from whale_tf.world import join, read_environment
environment = read_environment(os.environ)
rank = environment.rank
member = join(environment, on_abort=lambda message: None)
assert member is not None
"""


@dataclass
class Runs:
    """Starts `whale run` in a folder of its own, and finds its processes by a mark in their environment."""

    folder: Path
    first: str = ""  # what happens in `whale run` before everything else
    environment: dict[str, str] = field(default_factory=dict)
    bound_seconds: float = BOUND_SECONDS
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def script(self, text: str) -> str:
        (self.folder / "script.py").write_text(LIGHT + JOIN + text)
        return "script.py"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        self.write_whale()
        return self.start_command(sys.executable, "whale.py", "run", *arguments)

    def write_whale(self) -> None:
        (self.folder / "whale.py").write_text(LIGHT + self.first + "from whale_tf.cli import main\nmain()\n")

    def start_command(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, **self.environment, "WHALE_TF_TEST": self.mark, "TERM": "dumb"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output, errors of `whale run`."""
        return self.end(self.start(*arguments))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Exit code, output, errors; what is not done in time is ended, and fails with what it has said."""
        try:
            output, errors = process.communicate(timeout=self.bound_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            raise AssertionError(f"no end within {self.bound_seconds:g} s; it said:\n{output}\n{errors}") from None
        return process.returncode, output, errors

    def processes(self) -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(f"{entry.name}: {(entry / 'cmdline').read_bytes().decode()}")
            except OSError:  # it has ended meanwhile, or is another user's
                continue
        return found

    def wait_until_gone(self, seconds: float = 10.0) -> list[str]:
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.02)
        return left


def checked(runs: Runs) -> Iterator[Runs]:
    """For a fixture: lends it, and fails where processes are left behind."""
    yield runs
    left = runs.wait_until_gone()
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process.partition(":")[0]), signal.SIGKILL)
    assert not left
