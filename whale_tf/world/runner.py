"""Runs one rank under `whale run`: starts its Python, sends on what it prints, tells how it ended, cleans up after it.

    mpiexec ─ runner of rank 2 ─ python script.py       the process that the user wrote, started as by hand
                  └── hub in `whale run`                 output, exit code or signal; what to do next

The runner outlives its process until all ranks have ended: an mpiexec that saw one rank end would kill the others
before they could say what happened to them. When the hub's connection ends, however that came, so does the rank.

It is run by its path and keeps to the standard library, so that it starts at once and leaves it to the script to set up
TensorFlow before importing it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import IO

if __name__ == "__main__":  # a package without its __init__, which imports more than the standard library
    _package = types.ModuleType("whale_tf")
    _package.__path__ = [str(Path(__file__).parent.parent)]
    sys.modules["whale_tf"] = _package
    sys.path.pop(0)

from whale_tf.world import frames
from whale_tf.world.address import connect, watch_for_silence
from whale_tf.world.descendants import kill_descendants
from whale_tf.world.ending import last_traceback
from whale_tf.world.environment import read_address, read_environment

TAIL_BYTES = 1 << 16  # of the error output: a traceback is at its end
LINE_BYTES = 1 << 16  # a line longer than that goes out in pieces
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


class Runner:
    """One rank's process and the connection to the hub."""

    def __init__(self, connection: socket.socket, command: list[str]) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._tail = b""
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the rank starts and leaves behind becomes a child of the runner
        runner = os.getpid()

        def die_with_runner() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != runner:
                os._exit(1)

        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            close_fds=False,  # mpiexec has left connections for MPI
            process_group=0,
            preexec_fn=die_with_runner,
        )

    def run(self) -> None:
        """Until the hub lets go."""
        obeys = threading.Thread(target=self._obey, daemon=True)
        obeys.start()
        assert self._process.stdout is not None and self._process.stderr is not None
        streams = [(1, self._process.stdout), (2, self._process.stderr)]
        copies = [threading.Thread(target=self._copy, args=stream, daemon=True) for stream in streams]
        for copy in copies:
            copy.start()
        status = self._process.wait()
        kill_descendants(os.getpid())  # they may hold the pipes open
        for copy in copies:
            copy.join(5.0)
        tail = last_traceback(self._tail.decode(errors="replace"), status)
        self._send({"kind": "ended", "status": status, "traceback": tail})
        obeys.join()

    def _obey(self) -> None:
        with contextlib.suppress(OSError, frames.FrameError):
            while (frame := frames.receive(self._connection)) is not None:
                if frame[0]["kind"] == "release":
                    break
                if frame[0]["kind"] == "kill":
                    kill_descendants(os.getpid())
                if frame[0]["kind"] == "signal":
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._process.pid, int(frame[0]["number"]))
        kill_descendants(os.getpid())

    def _copy(self, number: int, stream: IO[bytes]) -> None:
        """Whole lines go to the hub; a last one without an end gets one."""
        line = b""
        while chunk := os.read(stream.fileno(), 1 << 16):
            if number == 2:
                self._tail = (self._tail + chunk)[-TAIL_BYTES:]
            complete, end, rest = (line + chunk).rpartition(b"\n")
            if not end and len(rest) > LINE_BYTES:
                complete, rest = rest + b"\n", b""
            line = rest
            if complete or end:
                self._send({"kind": "output", "stream": number}, complete + end)
        if line:
            self._send({"kind": "output", "stream": number}, line + b"\n")

    def _send(self, header: frames.Header, payload: bytes = b"") -> None:
        """Blocks while the hub does not read: so does, in the end, the rank that prints."""
        with contextlib.suppress(OSError), self._sending:
            self._connection.sendall(frames.pack(header, payload))


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def main() -> None:
    environment, address = read_environment(os.environ), read_address(os.environ)
    if address is None:
        sys.exit("the runner is started by `whale run`")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the hub says what to do
    hello = {"rank": environment.rank, "size": environment.size, "role": "runner"}
    connection = connect(address, hello, timeout=60.0)
    watch_for_silence(connection, 30.0)
    Runner(connection, sys.argv[1:]).run()


if __name__ == "__main__":
    main()
