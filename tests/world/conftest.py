"""Runs of `whale run` as a user starts them, with a check that nothing of them stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def script(self, text: str) -> str:
        (self.folder / "script.py").write_text(LIGHT + JOIN + text)
        return "script.py"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        (self.folder / "whale.py").write_text(LIGHT + self.first + "from whale_tf.cli import main\nmain()\n")
        return subprocess.Popen(
            [sys.executable, "whale.py", "run", *arguments],
            cwd=self.folder,
            env={**os.environ, "WHALE_TF_TEST": self.mark, "TERM": "dumb"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=BOUND_SECONDS)
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


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    these = Runs(tmp_path)
    yield these
    left = these.wait_until_gone()
    for process in left:
        os.kill(int(process.partition(":")[0]), 9)
    assert not left
