"""The hub: hears all ranks, brings their exchanges together, and tells all when one of them is gone.

It runs in one thread with its own event loop, in the process of `whale run` or else in that of rank 0. Nothing that a
connection does holds up another one. The first reason to end the run wins and is told to everybody, those who join
later included.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import socket
import threading
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Protocol

from whale_tf.world import frames
from whale_tf.world.address import Address, addresses_of_this_host, watch_for_silence
from whale_tf.world.agreement import Exchange, Refusal, Reports, difference, ranks_text
from whale_tf.world.ending import Ending, describe_status, summary

GREETING_SECONDS = 10.0
SETTLE_SECONDS = 0.5  # after a difference or a broken connection: what the other ranks, and the runner, say of it
GOODBYE_SECONDS = 5.0
RELEASED_SECONDS = 5.0  # from a rank's release to the end of its process, which says more than that its script is over
JOIN_SECONDS = 60.0


class Listener(Protocol):
    """What `whale run` wants to hear; called in the hub's thread, `output` in threads of its own."""

    def output(self, rank: int, stream: int, lines: bytes) -> None: ...

    def runner_joined(self, rank: int) -> None: ...

    def failed(self, ending: Ending) -> None: ...

    def ended(self, rank: int, status: int) -> None: ...


@dataclass(eq=False)
class Connection:
    rank: int
    writer: asyncio.StreamWriter
    said_goodbye: bool = False
    lingers: bool = False  # its process stays until the others have ended
    end: str = "its connection ended without a goodbye"

    def send(self, header: frames.Header, payload: bytes = b"") -> None:
        if not self.writer.is_closing():
            self.writer.write(frames.pack(header, payload))


class Hub:
    """The server of one world.

    Args:
      size: how many ranks there are.
      seconds_to_vanish: how long a host may be silent before its ranks count as dead.
      listener: who wants the output and the endings of the processes.
    """

    def __init__(self, size: int, *, seconds_to_vanish: float = 30.0, listener: Listener | None = None) -> None:
        self.size, self.seconds_to_vanish, self.listener = size, seconds_to_vanish, listener
        self.refusal: Refusal | None = None
        self._token = secrets.token_hex(16)
        self._members: dict[int, Connection] = {}
        self._runners: dict[int, Connection] = {}
        self._finished: set[int] = set()  # their script is over, and they wait for the others to end with them
        self._released: set[int] = set()  # of these, who was told to wait no longer
        self._left: set[int] = set()
        self._failed: dict[int, Ending] = {}
        self._exchanges: dict[int, Exchange] = {}
        self._exchanges_of: dict[int, int] = {}
        self._reports = Reports(size)
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_joined, self._nobody_there = threading.Event(), threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="whale_tf hub", daemon=True)

    def start(self) -> Address:
        """Listens from now on."""
        dual = socket.has_dualstack_ipv6()
        family, any_address = (socket.AF_INET6, "::") if dual else (socket.AF_INET, "0.0.0.0")
        listening = socket.create_server((any_address, 0), family=family, dualstack_ipv6=dual, backlog=256)
        self._thread.start()
        start = asyncio.start_server(self._serve, sock=listening)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        port = listening.getsockname()[1]
        hosts = [host for host in addresses_of_this_host() if dual or ":" not in host]
        return Address(self._token, tuple((host, port) for host in hosts))

    def wait(self, timeout: float | None = None) -> None:
        """Until every rank has joined and is gone again, or the time is over; who has not joined by now soon will."""
        self._all_joined.wait(JOIN_SECONDS if timeout is None else timeout)
        self._nobody_there.wait(timeout)

    def stop(self) -> None:
        """Closes all connections, when what was written has gone out."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(TimeoutError):  # somebody does not read: it is not waited for
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(GOODBYE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GOODBYE_SECONDS)
        self._loop.close()

    def tell_runners(self, header: frames.Header) -> None:
        """From any thread: {"kind": "signal", "number": 2}, or {"kind": "release"}."""

        def tell() -> None:
            for runner in self._runners.values():
                runner.send(header)

        self._loop.call_soon_threadsafe(tell)

    def abort(self, refusal: Refusal) -> None:
        """From any thread: ends the run for all members."""
        self._loop.call_soon_threadsafe(self._abort, refusal)

    async def _close(self) -> None:
        self._server.close()
        for connection in [*self._members.values(), *self._runners.values()]:
            connection.writer.close()
        for connection in [*self._members.values(), *self._runners.values()]:
            with contextlib.suppress(OSError):  # it is gone in any case
                await connection.writer.wait_closed()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from greeting to end."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection, role = None, ""
        try:
            connection, role = await self._greet(reader, writer)
            handle = self._from_member if role == "member" else self._from_runner
            while connection is not None and (frame := await frames.read(reader)) is not None:
                await handle(connection, *frame)
        except (OSError, frames.FrameError, KeyError, TypeError, ValueError) as error:
            if connection is not None:  # else a stranger
                connection.end = f"its connection broke: {error!r}"
        finally:
            writer.close()
            self._tasks.discard(task)
            if connection is not None:
                (self._member_gone if role == "member" else self._runner_gone)(connection)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Connection | None, str]:
        """Lets in who knows the token and is a rank that is not there yet; strangers get no answer."""
        watch_for_silence(writer.get_extra_info("socket"), self.seconds_to_vanish)
        frame = await asyncio.wait_for(frames.read(reader, limit=frames.GREETING_BYTES), GREETING_SECONDS)
        hello = frame[0] if frame is not None else {"kind": "nothing"}
        if hello["kind"] != "hello" or not hmac.compare_digest(str(hello.get("token")).encode(), self._token.encode()):
            return None, ""
        rank, size, role = int(hello["rank"]), int(hello["size"]), str(hello["role"])
        there = self._members if role == "member" else self._runners
        connection = Connection(rank, writer)
        why = ""
        if size != self.size or not 0 <= rank < size:
            why = f"rank {rank} of {size} has no place in a world of {self.size}"
        elif rank in there:
            why = f"rank {rank} has joined already, in another process or by an earlier call"
        if why:
            connection.send({"kind": "refused", "why": why})
            return None, ""
        there[rank] = connection
        connection.send({"kind": "welcome"})
        if role == "runner" and self.listener is not None:
            self.listener.runner_joined(rank)
        if role == "member":
            self._nobody_there.clear()
            if len(self._members) == self.size:
                self._all_joined.set()
            if self.refusal is not None:
                connection.send(_abort_frame(self.refusal))
            for gone in self._left:
                connection.send({"kind": "left", "rank": gone})
        return connection, role

    async def _from_member(self, member: Connection, header: frames.Header, payload: bytes) -> None:
        match header["kind"]:
            case "exchange":
                self._arrive(member.rank, str(header["name"]), payload, float(header["timeout"]))
            case "report":
                topic, number = str(header["topic"]), int(header["number"])
                if digests := self._reports.add(member.rank, topic, number, str(header["digest"])):
                    settled = len(digests) == self.size
                    self._soon(settled, lambda: self._abort(difference(topic, number, digests)))
                self._go_on_without_the_ended()
            case "finished":
                self._finished.add(member.rank)
                self._go_on_without_the_ended()
            case "failed":
                ending = Ending(member.rank, str(header["summary"]), str(header["traceback"]))
                self._fail(ending, f"rank {member.rank} failed: {ending.summary}")
            case "goodbye":
                member.said_goodbye = True
                self._part_from(member)

    async def _from_runner(self, runner: Connection, header: frames.Header, payload: bytes) -> None:
        rank = runner.rank
        match header["kind"]:
            case "output" if self.listener is not None:
                # In a thread: a full terminal holds up this rank, and nobody else.
                await self._loop.run_in_executor(None, self.listener.output, rank, int(header["stream"]), payload)
            case "ended":
                runner.said_goodbye = True
                self._process_ended(rank, int(header["status"]), str(header["traceback"]))

    def _arrive(self, rank: int, name: str, payload: bytes, seconds: float) -> None:
        number = self._exchanges_of.get(rank, 0)
        self._exchanges_of[rank] = number + 1
        if number not in self._exchanges:
            self._exchanges[number] = Exchange(number)
            self._loop.call_later(seconds, self._exchange_is_late, number, seconds)
        exchange = self._exchanges[number]
        exchange.names[rank], exchange.payloads[rank] = name, payload
        complete = len(exchange.names) == self.size
        if exchange.differs():
            self._soon(complete, lambda: self._abort(exchange.disagreement()))
        elif complete:
            del self._exchanges[number]
            lengths = [len(exchange.payloads[of]) for of in range(self.size)]
            together = b"".join(exchange.payloads[of] for of in range(self.size))
            for member in self._members.values():
                member.send({"kind": "exchanged", "lengths": lengths}, together)
        else:
            self._go_on_without_the_ended()

    def _exchange_is_late(self, number: int, seconds: float) -> None:
        if number not in self._exchanges:
            return
        exchange = self._exchanges[number]
        missing = {rank: self._state_of(rank) for rank in range(self.size) if rank not in exchange.names}
        self._abort(exchange.late(missing, seconds))

    def _state_of(self, rank: int) -> str:
        if rank not in self._members:
            return "has never joined: its script has not come to whale.init()"
        return "has joined, is alive, and has not asked for it"

    def _go_on_without_the_ended(self) -> None:
        """Where another rank still needs one whose script is over, the run cannot end well.

        A rank that has left ends the run. One that still waits for the others, who do not come, is released: how its
        process then ends, and with which exit code, is told like every end.
        """
        if self._refusal_without(self._left):
            self._abort_without(self._left | self._finished)
        waiting = self._finished - self._released
        missed = {rank for rank in waiting if self._refusal_without({rank})} if self._refusal_without(waiting) else ()
        for rank in missed:
            self._released.add(rank)
            self._members[rank].send({"kind": "release"})
        if missed:
            self._loop.call_later(RELEASED_SECONDS, self._abort_without, self._finished)

    def _refusal_without(self, ended: Set[int]) -> Refusal | None:
        for exchange in self._exchanges.values():
            if gone := ended - set(exchange.names):
                return exchange.left(gone)
        return self._reports.lacking(ended)

    def _abort_without(self, ended: Set[int]) -> None:
        if refusal := self._refusal_without(ended):
            self._abort(refusal)

    def _part_from(self, member: Connection) -> None:
        """Lets a rank go, which waits for that to end its process.

        mpiexec kills those that one leaves behind, and may return that one's exit code 0. Where no runner stands
        between, who has not failed in a run that has goes after those who have.
        """
        watched = member.rank in self._runners
        if member.rank in self._released and not watched:
            self._leave(member.rank)
        if watched or member.rank not in self._finished or member.rank in self._failed or self.refusal is None:
            member.writer.close()
            return
        member.lingers = True
        member.send({"kind": "linger"})
        self._loop.call_later(GOODBYE_SECONDS, member.writer.close)
        self._part_from_the_last()

    def _part_from_the_last(self) -> None:
        if all(member.lingers or member.writer.is_closing() for member in self._members.values()):
            self._nobody_there.set()
            for member in self._members.values():
                member.writer.close()

    def _member_gone(self, member: Connection) -> None:
        rank = member.rank
        if rank in self._runners and not self._runners[rank].said_goodbye:
            # The process itself is what counts, and its runner knows how it ended.
            self._loop.call_later(SETTLE_SECONDS, self._member_lost, member)
        else:
            self._member_lost(member)
        self._part_from_the_last()

    def _member_lost(self, member: Connection) -> None:
        rank = member.rank
        if rank in self._left or rank in self._failed:
            return
        if not member.said_goodbye:
            self._fail(Ending(rank, f"died: {member.end}"), f"rank {rank} died: {member.end}")
        elif rank not in self._runners:
            self._leave(rank)

    def _runner_gone(self, runner: Connection) -> None:
        if not runner.said_goodbye and runner.rank not in self._failed:
            why = "nothing is heard of the host or of the process that watches it"
            self._fail(Ending(runner.rank, f"died: {why}"), f"rank {runner.rank} died: {why}")
        if not runner.said_goodbye and self.listener is not None:
            self.listener.ended(runner.rank, 1)

    def _process_ended(self, rank: int, status: int, traceback: str) -> None:
        member = self._members.get(rank)
        if rank not in self._failed:
            if status == 0 and (member is None or member.said_goodbye):
                self._leave(rank)
            else:
                how = summary(traceback) or describe_status(status)
                how = how if status else "it ended without a goodbye (exit code 0)"
                word = "failed" if status > 0 else "died"
                self._fail(Ending(rank, how, traceback), f"rank {rank} {word}: {how}")
        if self.listener is not None:
            self.listener.ended(rank, status)

    def _leave(self, rank: int) -> None:
        self._left.add(rank)
        for member in self._members.values():
            member.send({"kind": "left", "rank": rank})
        self._go_on_without_the_ended()

    def _fail(self, ending: Ending, rule: str) -> None:
        if ending.rank in self._failed:
            return
        self._failed[ending.rank] = ending
        if self.listener is not None:
            self.listener.failed(ending)
        self._abort(Refusal(rule, (), f"Look at the output of {ranks_text([ending.rank])}: it comes first."))

    def _soon(self, settled: bool, act: Callable[[], None]) -> None:
        """At once where nothing more can come, else when others have had the time to say their part."""
        if settled:
            act()
        else:
            self._loop.call_later(SETTLE_SECONDS, act)

    def _abort(self, refusal: Refusal) -> None:
        if self.refusal is not None:
            return
        self.refusal = refusal
        for member in self._members.values():
            member.send(_abort_frame(refusal))


def _abort_frame(refusal: Refusal) -> frames.Header:
    return {"kind": "abort", "rule": refusal.rule, "details": refusal.details, "way_out": refusal.way_out}
