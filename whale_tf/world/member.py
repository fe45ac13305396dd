"""One rank's end of its connection to the hub."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from whale_tf.errors import RunError
from whale_tf.world import frames
from whale_tf.world.address import Address, connect, watch_for_silence
from whale_tf.world.ending import TRACEBACK, summary
from whale_tf.world.environment import Environment

ANSWER_SECONDS = 5.0  # how long the hub may take for what it does at once
PARTING_SECONDS = 10.0  # how long it may keep a rank until the others, whose run has failed, have left
EXIT_SECONDS = 1.0  # from then on to the ends of their processes


class Member:
    """One rank among the others; all methods may be called from any thread.

    Args:
      environment: rank and size.
      address: the hub's.
      on_abort: called once, in this member's thread, with the reason, when nobody can be waited for any more: the run
        must end, with the message of `failure`; or this rank has finished, and the others cannot.
      timeout: seconds to find the hub.
      seconds_to_vanish: how long the hub's host may be silent before it counts as dead.

    Attributes:
      failure: why the run ended; None while all is well.
      left: ranks that have ended normally.
    """

    def __init__(
        self,
        environment: Environment,
        address: Address,
        on_abort: Callable[[str], None],
        *,
        timeout: float = 60.0,
        seconds_to_vanish: float = 30.0,
    ) -> None:
        self.rank, self.size = environment.rank, environment.size
        self.failure: RunError | None = None
        self.left: frozenset[int] = frozenset()
        self._on_abort = on_abort
        self._changed = threading.Condition()
        self._sending, self._exchanging = threading.Lock(), threading.Lock()
        self._numbering, self._numbers = threading.Lock(), dict[str, int]()
        self._answer: list[bytes] | None = None
        self._called_back = self._lingers = self._leaving = self._ended = False
        hello = {"rank": self.rank, "size": self.size, "role": "member"}
        self._socket = connect(address, hello, timeout)
        watch_for_silence(self._socket, seconds_to_vanish)
        threading.Thread(target=self._listen, name="whale_tf member", daemon=True).start()

    def exchange(self, name: str, payload: bytes, timeout: float) -> list[bytes]:
        """Every rank's payload, in the order of ranks; returns when all have given theirs.

        Args:
          name: what is exchanged: the same on all ranks, and said in errors.
          timeout: seconds from the first rank's arrival to the last one's.
        Raises:
          RunError: a rank died, failed, ended, came too late or asked for something else. The run is over.
        """
        with self._exchanging:  # two threads of one rank would mix up their order
            if self.failure is not None:
                raise self._again(f"rank {self.rank} waited in the exchange {name!r}")
            self._send({"kind": "exchange", "name": name, "timeout": timeout}, payload)
            with self._changed:
                answered = self._changed.wait_for(
                    lambda: self._answer is not None or self.failure is not None, timeout + ANSWER_SECONDS
                )
                answer, self._answer = self._answer, None
            if not answered:
                self._abort(
                    _error(f"the hub does not answer in the exchange {name!r}", details=[f"waited {timeout:g} s"])
                )
            if answer is not None:
                return answer
            raise self._again(f"rank {self.rank} waited in the exchange {name!r}")

    def report(self, topic: str, number: int, digest: str) -> None:
        """Says what this rank has under a topic and number; returns at once.

        When another rank says something else, the run ends for all, with the first line that differs.
        """
        self._send({"kind": "report", "topic": topic, "number": number, "digest": digest})

    def report_next(self, topic: str, digest: str) -> None:
        """Reports under the number that comes next: all ranks report the same things in the same order."""
        with self._numbering:
            self._numbers[topic] = self._numbers.get(topic, 0) + 1
            self.report(topic, self._numbers[topic], digest)

    def fail(self, error: BaseException | str) -> None:
        """Tells all that this rank has failed, and waits until the hub knows it."""
        if isinstance(error, str):
            said, text = error, ""
        else:
            only = "".join(traceback.format_exception_only(error))
            said = summary(f"{TRACEBACK}\n{only}")
            text = "".join(traceback.format_exception(error))
            if error.__traceback__ is None:  # it is about to be raised, by the caller of who tells it
                text = "".join([f"{TRACEBACK}\n", *traceback.format_stack()[:-2], only])
        self._send({"kind": "failed", "summary": said, "traceback": text})
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None or self._ended, ANSWER_SECONDS)

    def wait_for_failure(self, seconds: float) -> RunError | None:
        """Why the run ended, if that is known within so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None, seconds)
            return self.failure

    def check(self) -> None:
        """Refuses to go on in a run that has ended.

        Raises:
          RunError: why it has.
        """
        if self.failure is not None:
            raise self._again()

    def finish(self) -> None:
        """Says that this rank's script is over, before it waits for the others to end with it; returns at once.

        Where another rank still needs this one, `on_abort` is called; that is no failure of this rank.
        """
        self._send({"kind": "finished"})

    def leave(self) -> None:
        """Says goodbye: this rank has done its part. Without it, the end of the process is a death."""
        self._leaving = True
        self._send({"kind": "goodbye"})
        with self._changed:  # the hub closes; closing before it has read everything could lose the goodbye
            self._changed.wait_for(lambda: self._ended, PARTING_SECONDS)
        if self._lingers:
            time.sleep(EXIT_SECONDS)
        self._socket.close()

    def _send(self, header: frames.Header, payload: bytes = b"") -> None:
        """A connection that is broken is noticed, and told, by the thread that listens."""
        try:
            with self._sending:
                self._socket.sendall(frames.pack(header, payload))
        except OSError:
            return

    def _listen(self) -> None:
        why = "it closed the connection"
        try:
            while (frame := frames.receive(self._socket)) is not None:
                self._take(*frame)
        except (OSError, frames.FrameError) as error:
            why = str(error)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if not self._leaving:
            self._abort(_error("the hub of the run is gone", details=[why], way_out="Look at `whale run`, or rank 0."))

    def _take(self, header: frames.Header, payload: bytes) -> None:
        match header["kind"]:
            case "exchanged":
                parts, start = [], 0
                for length in header["lengths"]:
                    parts.append(payload[start : start + length])
                    start += length
                with self._changed:
                    self._answer = parts
                    self._changed.notify_all()
            case "left":
                self.left |= {int(header["rank"])}
            case "release":
                self._call_back(f"rank {self.rank} has ended, and others still wait for it")
            case "linger":
                self._lingers = True
            case "abort":
                self._abort(_error(header["rule"], details=header["details"], way_out=header["way_out"]))

    def _abort(self, failure: RunError) -> None:
        with self._changed:
            if self.failure is not None:
                return
            self.failure = failure
            self._changed.notify_all()
        self._call_back(str(failure))

    def _call_back(self, why: str) -> None:
        with self._changed:
            if self._called_back:
                return
            self._called_back = True
        self._on_abort(why)

    def _again(self, where: str = "") -> RunError:
        """A new error for each call that fails: one raised twice would show the first one's traceback.

        Args: what this rank was at, told where the failure itself has no details.
        """
        failure = self.failure
        assert failure is not None
        details = failure.details or ((where,) if where else ())
        return _error(failure.rule, details=details, way_out=failure.way_out)


def _error(rule: str, *, details: list[str] | tuple[str, ...] = (), way_out: str = "") -> RunError:
    return RunError(rule, details=details, way_out=way_out)
