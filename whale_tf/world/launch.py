"""What `whale run` does: starts all ranks, passes on what they print, and ends them all when one fails.

start ─▶ all ranks end ─▶ release the runners ─▶ mpiexec ends
  └─ a rank fails, or a signal comes ─▶ grace: the others tell their own errors ─▶ kill ─┘
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from whale_tf.errors import DeviceError
from whale_tf.world import runner
from whale_tf.world.agreement import Refusal, ranks_text
from whale_tf.world.descendants import kill_descendants
from whale_tf.world.ending import Ending, describe_status, exit_code
from whale_tf.world.environment import DEFAULT_TIMEOUT_SECONDS, HUB, TIMEOUT
from whale_tf.world.hosts import Host
from whale_tf.world.hub import Hub

KILL_SECONDS = 10.0  # from SIGKILL to the last word of the runners
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLOSE_SECONDS = 5.0  # from the last rank's end to that of mpiexec
OF_OTHER_LAUNCHERS = ("PMI_", "PMIX_", "OMPI_", "MPI_LOCAL", "HYDI_", "WHALE_TF_RANK", "WHALE_TF_SIZE")


class Output(Protocol):
    """Where the lines go that ranks print, and what `whale run` itself has to say."""

    def output(self, rank: int, stream: int, lines: bytes) -> None: ...

    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class Run:
    """What to run.

    Args:
      command: what Python gets: a script or -m module, and its arguments.
      size: the number of ranks.
      hosts: where they may run; this host where empty.
      grace: seconds for the other ranks to tell their errors, once one has failed.
      timeout: seconds that a rank waits for another, and `whale run` for all to start.
      mpiexec_options: what mpiexec gets besides.
    """

    command: tuple[str, ...]
    size: int
    hosts: tuple[Host, ...] = ()
    grace: float = 15.0
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    mpiexec_options: tuple[str, ...] = ()

    def command_line(self) -> list[str]:
        ranks = [sys.executable, str(Path(runner.__file__)), sys.executable, *self.command]
        if self.size == 1 and not self.hosts:
            return ranks
        placed = ["-hosts", ",".join(map(str, self.hosts))] if self.hosts else []
        return [mpiexec(), *placed, *self.mpiexec_options, "-n", str(self.size), *ranks]

    def environment(self, environ: Mapping[str, str], address: str) -> dict[str, str]:
        kept = {name: value for name, value in environ.items() if not name.startswith(OF_OTHER_LAUNCHERS)}
        kept |= {HUB: address, TIMEOUT: f"{self.timeout:g}"}
        kept.setdefault("PYTHONUNBUFFERED", "1")  # its output is a pipe: lines must not wait in a buffer
        kept.setdefault("PYTHONFAULTHANDLER", "1")  # a crash in native code tells its line
        return kept | ({"WHALE_TF_RANK": "0", "WHALE_TF_SIZE": "1"} if self.size == 1 else {})


def mpiexec() -> str:
    """Beside this Python, where `pip install mpich` puts it, else in PATH."""
    found = shutil.which("mpiexec", path=str(Path(sys.prefix, "bin"))) or shutil.which("mpiexec")
    if found is None:
        raise DeviceError(
            "there is no mpiexec to start several processes with",
            details=[f"it is neither in {Path(sys.prefix, 'bin')} nor in PATH"],
            way_out="pip install whale_tf[mpi]",
        )
    return found


class Launch:
    """One run; also the hub's listener. What happens becomes an event for the main thread."""

    def __init__(self, run: Run, output: Output) -> None:
        self._run, self._output = run, output
        self._events: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._failures: list[Ending] = []
        self._joined: set[int] = set()
        self._statuses: dict[int, int] = {}
        self._killed: set[int] = set()
        self._signal = 0
        self._released = False
        self._hub = Hub(run.size, listener=self)

    def output(self, rank: int, stream: int, lines: bytes) -> None:
        self._output.output(rank, stream, lines)

    def runner_joined(self, rank: int) -> None:
        self._events.put(("joined", rank))

    def failed(self, ending: Ending) -> None:
        self._failures.append(ending)
        self._events.put(("failed", ending.rank))

    def ended(self, rank: int, status: int) -> None:
        self._statuses[rank] = status
        self._events.put(("ended", rank))

    def __call__(self) -> int:
        """Runs to the end, and returns the exit code."""
        command = self._run.command_line()
        address = str(self._hub.start())
        with self._signals():
            launcher = subprocess.Popen(
                command,
                env=self._run.environment(os.environ, address),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for whale run, which passes it on
            )
            copy = threading.Thread(target=self._copy, args=(launcher,), daemon=True)
            copy.start()
            threading.Thread(target=self._wait, args=(launcher,), daemon=True).start()
            try:
                self._watch()
            finally:
                self._close(launcher)
                copy.join(CLOSE_SECONDS)
        return self._report(launcher.returncode)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals as events. Through a socket: a handler in Python would wait until the main thread wakes up."""
        reading, writing = socket.socketpair()
        writing.setblocking(False)

        def listen() -> None:
            while numbers := reading.recv(16):
                for number in numbers:
                    self._events.put(("signal", number))

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        woken = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken)
            writing.close()
            listener.join()
            reading.close()

    def _copy(self, launcher: subprocess.Popen[bytes]) -> None:
        """What mpiexec itself says: why ranks cannot be started; when all is over, only noise about their ends."""
        assert launcher.stdout is not None
        for line in launcher.stdout:
            if not self._released:
                self._output.say(line.decode(errors="replace").rstrip())

    def _wait(self, launcher: subprocess.Popen[bytes]) -> None:
        launcher.wait()
        self._events.put(("launcher", launcher.returncode))

    def _watch(self) -> None:
        """Until all ranks have ended, or had their time and did not."""
        deadline: float | None = time.monotonic() + self._run.timeout
        starting, failing, killing = True, False, False
        while len(self._statuses) < (len(self._joined) if killing else self._run.size):
            try:
                seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
                event, number = self._events.get(timeout=seconds)
            except queue.Empty:
                if killing:
                    return
                if starting:
                    self._not_started()
                self._kill()
                deadline, killing = time.monotonic() + KILL_SECONDS, True
                continue
            if event == "launcher":
                return
            if event == "joined":
                self._joined.add(number)
                if len(self._joined) == self._run.size and starting:
                    starting, deadline = False, None
            elif not killing and (event == "signal" or (event == "failed" and not failing)):
                deadline = time.monotonic() + (0.0 if self._signal else self._run.grace)
                starting, failing = False, True
                if event == "signal":
                    self._signal = number
                    self._hub.tell_runners({"kind": "signal", "number": number})

    def _kill(self) -> None:
        self._killed = set(range(self._run.size)) - set(self._statuses)
        self._hub.tell_runners({"kind": "kill"})

    def _not_started(self) -> None:
        missing = ranks_text(set(range(self._run.size)) - self._joined)
        self._output.say(f"whale run: {missing} did not start within {self._run.timeout:g} s")
        self._hub.abort(Refusal(f"{missing} did not start within {self._run.timeout:g} s"))

    def _close(self, launcher: subprocess.Popen[bytes]) -> None:
        """Lets the runners go, and what does not go by itself is ended."""
        self._released = launcher.poll() is None
        self._hub.tell_runners({"kind": "release"})
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(CLOSE_SECONDS if self._joined else 0.0)
        if launcher.poll() is None:
            kill_descendants(launcher.pid)  # ssh, and its like, are in sessions of their own
            launcher.kill()
            launcher.wait()
        self._hub.stop()  # a runner that is still there, on whatever host, ends with its connection

    def _report(self, launcher_code: int) -> int:
        """The last words: who failed first, how, and what became of the others."""
        if self._signal:
            self._output.say(f"whale run: ended by {signal.Signals(self._signal).name}")
            return 128 + self._signal
        if not self._failures:
            if len(self._statuses) == self._run.size:
                return 0
            if not self._killed:
                missing = ranks_text(set(range(self._run.size)) - set(self._statuses))
                self._output.say(f"whale run: mpiexec ended before {missing}, with {describe_status(launcher_code)}")
            return 1 if self._killed else exit_code(launcher_code) or 1
        first = self._failures[0]
        status = self._statuses.get(first.rank, 1)
        how = describe_status(status)
        if first.traceback:
            self._output.say(first.traceback.rstrip())
        summary = first.summary if first.summary == how else f"{first.summary} ({how})"
        self._output.say(f"whale run: rank {first.rank} failed first: {summary}")
        for rank in range(self._run.size):
            if rank != first.rank:
                self._output.say(f"  rank {rank}: {self._became(rank)}")
        return exit_code(status) or 1

    def _became(self, rank: int) -> str:
        if rank in self._killed:
            return f"still ran {self._run.grace:g} s later, and was killed"
        return describe_status(self._statuses[rank]) if rank in self._statuses else "nothing was heard of its end"
