"""Contenders that are groups of processes, which take their turns as functions do.

A group is started once, by `Groups`, and `serve` in each of its processes waits for its turns in a read from a socket,
which takes no core from the one that runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import tensorflow as tf

from whale_tf.world.environment import read_environment
from whale_tf.world.launch import mpiexec

ADDRESS, GROUP = "BENCHMARK_ADDRESS", "BENCHMARK_GROUP"  # how a process finds its Groups, and which one it is of
START_SECONDS = 180.0  # until all processes of all groups are ready; also the limit of one turn
END_SECONDS = 20.0  # that processes have to leave by themselves


class Groups:
    """Contenders that are groups of processes, all alive while the context lasts.

    The processes of a group run a module that makes itself ready and calls `serve`.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self._folder.name, "socket")))
        self._listener.listen()
        self._launchers: dict[str, subprocess.Popen[bytes]] = {}
        self._sizes: dict[str, int] = {}
        self._ranks: dict[str, dict[int, Any]] = {}

    def __enter__(self) -> Groups:
        return self

    def start(
        self, name: str, size: int, module: Sequence[str], *, whale_run: bool = False, bound: bool = True
    ) -> None:
        """Starts a group: `python -m` module and arguments, by `mpiexec` or by `whale run`.

        Rank k is bound to the k-th core of this process, whoever starts it; a group that is not bound has all cores.

        Raises:
          ValueError: there are fewer cores than processes: they would be measured waiting for one another.
        """
        cores = sorted(os.sched_getaffinity(0))[:size]
        if len(cores) < size:
            raise ValueError(f"group {name!r} has {size} processes of one core each, and there are {len(cores)} cores")
        binding = ["-bind-to", "user:" + ",".join(map(str, cores))] if bound else []
        command = [mpiexec(), *binding, "-n", str(size), sys.executable, "-m", *module]
        if whale_run:
            options = ["-n", str(size), "--mpiexec-options", " ".join(binding)]
            command = [sys.executable, "-m", "whale_tf.cli", "run", *options, "-m", *module]
        found = {ADDRESS: self._listener.getsockname(), GROUP: name, "TF_CPP_MIN_LOG_LEVEL": "3"}
        with self._log(name).open("wb") as log:
            self._launchers[name] = subprocess.Popen(
                command,
                env={**os.environ, **found},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # to end with all that it started
            )
        self._sizes[name], self._ranks[name] = size, {}

    def wait(self) -> None:
        """Until all processes that were started are ready.

        Raises:
          RuntimeError: some are not, in time; has what they printed.
        """
        deadline = time.monotonic() + START_SECONDS
        self._listener.settimeout(0.5)
        while missing := [name for name, size in self._sizes.items() if len(self._ranks[name]) < size]:
            ended = [name for name in missing if self._launchers[name].poll() is not None]
            if ended or time.monotonic() > deadline:
                raise self._failure((ended or missing)[0], "did not start")
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                connection.settimeout(START_SECONDS)
                stream = connection.makefile("rw")
                connection.close()  # the stream holds it
                name, rank = json.loads(stream.readline())
                self._ranks[name][rank] = stream

    def run(self, group: str, step: str, times: int) -> tuple[list[float], list[float]]:
        """Lets all processes of a group take a step so many times.

        Returns:
          the seconds of each time, where the slowest process counts, and what the first process's step gave.
        Raises:
          RuntimeError: a process failed, or takes too long; has what they printed.
        """
        streams = [stream for _, stream in sorted(self._ranks[group].items())]
        try:
            for stream in streams:
                print(json.dumps([step, times]), file=stream, flush=True)
            replies = [json.loads(stream.readline()) for stream in streams]
        except (OSError, ValueError) as error:
            raise self._failure(group, f"did not finish {step!r}: {error}") from error
        seconds = [max(of_ranks) for of_ranks in zip(*(reply["seconds"] for reply in replies), strict=True)]
        return seconds, replies[0]["values"]

    def turn(self, group: str, step: str, steps: int) -> float:
        """The median seconds of a step; the first one, which fetches memory that others have used, does not count."""
        return median(self.run(group, step, 1 + steps)[0][1:])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for stream in (stream for ranks in self._ranks.values() for stream in ranks.values()):
            with contextlib.suppress(OSError):
                stream.close()
        deadline = time.monotonic() + (END_SECONDS if kind is None else 1.0)
        for launcher in self._launchers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(max(0.0, deadline - time.monotonic()))
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(launcher.pid, number)
                    launcher.wait(END_SECONDS)
        self._listener.close()
        self._folder.cleanup()

    def _log(self, name: str) -> Path:
        return Path(self._folder.name, re.sub(r"\W", "_", name) + ".log")

    def _failure(self, name: str, what: str) -> RuntimeError:
        return RuntimeError(f"group {name!r} {what}; it printed\n{self._log(name).read_text()[-4000:]}")


def serve(steps: Mapping[str, Callable[[], Any]]) -> None:
    """Takes the turns of this process, until its Groups have ended.

    Args:
      steps: by name; what gives a number, as a loss, is measured up to where it can be read.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        stream = connection.makefile("rw")
        print(json.dumps([os.environ[GROUP], read_environment(os.environ).rank]), file=stream, flush=True)
        for line in stream:
            name, times = json.loads(line)
            seconds, values = [], []
            for _ in range(times):
                start = time.perf_counter()
                value = steps[name]()
                values.append(0.0 if value is None else float(value))
                seconds.append(time.perf_counter() - start)
            print(json.dumps({"seconds": seconds, "values": values}), file=stream, flush=True)


def use_one_core() -> None:
    """One thread in each of TensorFlow's pools; before TensorFlow starts. The binding to a core is the launcher's."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def free_ports(count: int) -> list[int]:
    """Ports of this host's loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def tf_config(ports: Sequence[int]) -> int:
    """Tells TensorFlow's strategies of one worker for each port; returns which one this process is."""
    index = read_environment(os.environ).rank
    workers = [f"127.0.0.1:{port}" for port in ports]
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
    return index
