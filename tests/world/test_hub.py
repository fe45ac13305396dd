"""Hub and members in one process, over real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pytest

from whale_tf.errors import DeviceError, RunError
from whale_tf.world import frames
from whale_tf.world.address import Address, connect
from whale_tf.world.environment import Environment
from whale_tf.world.hub import Hub
from whale_tf.world.member import Member

BOUND_SECONDS = 30.0


@dataclass
class World:
    hub: Hub
    address: Address
    members: list[Member] = field(default_factory=list)
    aborts: list[str] = field(default_factory=list)
    aborted: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def on_abort(self, message: str) -> None:
        self.aborts.append(message)
        self.aborted.release()

    def join(self, rank: int) -> Member:
        member = Member(Environment(rank, self.hub.size, "test"), self.address, self.on_abort)
        self.members.append(member)
        return member

    def wait_for_aborts(self, count: int) -> str:
        for _ in range(count):
            assert self.aborted.acquire(timeout=BOUND_SECONDS)
        assert len(set(self.aborts)) == 1
        return self.aborts[0]

    def wait_for_release(self, *ranks: int) -> None:
        for _ in ranks:
            assert self.aborted.acquire(timeout=BOUND_SECONDS)
        assert sorted(self.aborts) == [f"rank {rank} has ended, and others still wait for it" for rank in ranks]
        self.aborts.clear()


@pytest.fixture
def world() -> Iterator[Callable[[int], World]]:
    worlds: list[World] = []

    def make(size: int) -> World:
        hub = Hub(size)
        worlds.append(World(hub, hub.start()))
        return worlds[-1]

    yield make
    for made in worlds:
        together(made.members, lambda member: member.leave())
        made.hub.stop()


def together(members: list[Member], act: Callable[[Member], object]) -> list[object]:
    """Results, or errors in their place."""

    def one(member: Member) -> object:
        try:
            return act(member)
        except RunError as error:
            return error

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(one, members))


def exchange(payloads: list[bytes], member: Member) -> list[bytes]:
    return member.exchange("x", payloads[member.rank], BOUND_SECONDS)


@pytest.mark.parametrize("size", [2, 64])
def test_exchanges_are_in_the_order_of_ranks(world: Callable[[int], World], size: int) -> None:
    made = world(size)
    members = [made.join(rank) for rank in reversed(range(size))]
    for turn in range(5):
        payloads = [b"%d of %d" % (turn, rank) * rank for rank in range(size)]
        found = together(members, partial(exchange, payloads))
        assert found == [payloads] * size


def test_a_large_payload_arrives_whole(world: Callable[[int], World]) -> None:
    made = world(2)
    members = [made.join(rank) for rank in range(2)]
    payloads = [bytes([rank]) * (8 << 20) for rank in range(2)]
    assert together(members, lambda m: m.exchange("x", payloads[m.rank], BOUND_SECONDS)) == [payloads] * 2


def test_a_connection_that_ends_is_a_death(world: Callable[[int], World]) -> None:
    made = world(3)
    members = [made.join(rank) for rank in range(2)]
    connect(made.address, {"rank": 2, "size": 3, "role": "member"}, 5.0).close()
    found = together(members, lambda member: member.exchange("x", b"", BOUND_SECONDS))
    message = made.wait_for_aborts(2)
    assert message == (
        "rank 2 died: its connection ended without a goodbye.\n  Look at the output of rank 2: it comes first."
    )
    at = [f"\n  rank {rank} waited in the exchange 'x'\n" for rank in range(2)]
    assert [str(error) for error in found] == [message.replace("\n", each) for each in at]
    assert [str(member.failure) for member in members] == [message] * 2


def test_half_a_frame_is_a_death(world: Callable[[int], World]) -> None:
    made = world(2)
    made.join(0)
    with connect(made.address, {"rank": 1, "size": 2, "role": "member"}, 5.0) as broken:
        broken.sendall(frames.pack({"kind": "goodbye"})[:-3])
    assert made.wait_for_aborts(1) == (
        "rank 1 died: its connection broke: FrameError('the connection ended inside a frame').\n"
        "  Look at the output of rank 1: it comes first."
    )


def test_a_failure_reaches_all_once_the_failed_one_included(world: Callable[[int], World]) -> None:
    made = world(3)
    members = [made.join(rank) for rank in range(3)]
    members[1].fail(ValueError("no"))
    members[1].fail("again")
    members[0].fail("another")
    message = made.wait_for_aborts(3)
    assert message == "rank 1 failed: ValueError: no.\n  Look at the output of rank 1: it comes first."
    assert together(members, lambda member: str(member.failure)) == [message] * 3


def test_who_joins_later_hears_of_the_failure(world: Callable[[int], World]) -> None:
    made = world(2)
    made.join(0).fail("of old age")
    made.join(1)
    assert made.wait_for_aborts(2).startswith("rank 0 failed: of old age.\n")


def test_a_rank_that_has_left_is_named(world: Callable[[int], World]) -> None:
    made = world(3)
    members = [made.join(rank) for rank in range(3)]
    members[2].leave()
    found = together(members[:2], lambda member: member.exchange("x", b"", BOUND_SECONDS))
    message = made.wait_for_aborts(2)
    assert message.startswith("rank 2 ended while others wait in the exchange 'x'.\n")
    assert [str(error).split(".")[0] for error in found] == [message.split(".")[0]] * 2
    assert members[2].failure is None


def test_all_may_leave(world: Callable[[int], World]) -> None:
    made = world(3)
    members = [made.join(rank) for rank in range(3)]
    together(members, lambda member: member.exchange("x", b"", BOUND_SECONDS))
    together(members, lambda member: member.leave())
    made.hub.wait(BOUND_SECONDS)
    assert made.aborts == []


def test_late_ranks_are_named_with_what_is_known_of_them(world: Callable[[int], World]) -> None:
    made = world(4)
    members = [made.join(rank) for rank in range(3)]
    together(members[:2], lambda member: member.exchange("the plan", b"", 0.3))
    assert made.wait_for_aborts(3) == (
        "ranks 2 and 3 did not arrive in the exchange 'the plan' within 0.3 s.\n"
        "  rank 2: has joined, is alive, and has not asked for it\n"
        "  rank 3: has never joined: its script has not come to whale.init()\n"
        "  ranks 0 and 1 waited\n"
        "  Look at what the missing ranks do; if they are only slow, give them longer: `whale run --timeout`."
    )


def test_reports_that_differ_end_the_run(world: Callable[[int], World]) -> None:
    made = world(3)
    members = [made.join(rank) for rank in range(3)]
    for member in members:
        member.report("step", 1, "same")
        member.report("step", 2, "aaaa" if member.rank != 1 else "bbbb")
    assert made.wait_for_aborts(3) == (
        "ranks differ in step 2.\n  ranks 0 and 2: aaaa\n  rank 1: bbbb\n"
        "  All ranks must run the same script with the same arguments."
    )


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0",
        b"",
        frames.pack({"kind": "hello", "token": "guessed", "rank": 1, "size": 2, "role": "member"}),
        frames.pack({"kind": "hello"}, b"x" * 5000),
    ],
)
def test_strangers_are_shown_the_door(world: Callable[[int], World], first: bytes) -> None:
    made = world(2)
    members = [made.join(0)]
    with socket.create_connection(made.address.places[0], timeout=BOUND_SECONDS) as stranger:
        stranger.sendall(first)
        stranger.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
    members.append(made.join(1))
    assert together(members, lambda member: member.exchange("x", b"a", BOUND_SECONDS)) == [[b"a", b"a"]] * 2


def test_a_rank_cannot_join_twice(world: Callable[[int], World]) -> None:
    made = world(2)
    made.join(1)
    with pytest.raises(DeviceError) as caught:
        made.join(1)
    assert str(caught.value).startswith("rank 1 cannot join the hub of its world.\n")
    assert ": rank 1 has joined already, in another process or by an earlier call\n" in str(caught.value)


def test_a_hub_that_is_gone_ends_its_members(world: Callable[[int], World]) -> None:
    made = world(2)
    member = made.join(0)
    made.hub.stop()
    assert made.wait_for_aborts(1) == (
        "the hub of the run is gone.\n  it closed the connection\n  Look at `whale run`, or rank 0."
    )
    with pytest.raises(RunError, match="the hub of the run is gone"):
        member.exchange("x", b"", BOUND_SECONDS)


def test_nobody_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DeviceError) as caught:
        connect(Address("token", (("127.0.0.1", port),)), {"rank": 3}, 0.0)
    assert str(caught.value) == (
        "rank 3 cannot join the hub of its world.\n"
        f"  127.0.0.1 port {port}: Connection refused\n"
        "  Check that the run's first process is alive, and that no firewall is between the hosts."
    )


def test_the_next_address_is_tried(world: Callable[[int], World]) -> None:
    made = world(2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = ("127.0.0.1", server.getsockname()[1])
    made.address = Address(made.address.token, (nobody, *made.address.places))
    assert made.join(0).failure is None


def test_an_address_parses_back() -> None:
    address = Address("ab12", (("10.0.0.1", 4000), ("fd00::1", 4000)))
    assert str(address) == "ab12@10.0.0.1:4000,[fd00::1]:4000"
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", "ab12", "ab12@", "@10.0.0.1:1", "ab12@name:1", "ab12@10.0.0.1"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DeviceError) as caught:
        Address.parse(text)
    assert str(caught.value) == (
        "the address of the hub cannot be read.\n"
        f"  it has {len(text)} characters; expected token@host:port,...\n"
        "  Leave WHALE_TF_HUB to `whale run`, which sets it."
    )


def test_a_rank_that_ended_is_not_waited_for_in_a_call(world: Callable[[int], World]) -> None:
    made = world(2)
    first, second = made.join(0), made.join(1)
    for member in (first, second):
        member.report_next("call", "step")
    second.leave()
    first.report_next("call", "step")
    assert made.wait_for_aborts(1) == (
        "rank 1 ended before call 2, in which all take part.\n"
        "  rank 0: step\n"
        "  All ranks must take part in the same number of steps: give each the same script and as much data."
    )
    with pytest.raises(RunError, match="rank 1 ended before call 2"):
        first.check()


@pytest.fixture
def quick_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whale_tf.world.member.EXIT_SECONDS", 0.0)


@contextlib.contextmanager
def leaving(members: list[Member]) -> Iterator[list[threading.Thread]]:
    threads = [threading.Thread(target=member.leave) for member in members]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(BOUND_SECONDS)
        assert not thread.is_alive()


@pytest.mark.usefixtures("quick_exits")
@pytest.mark.parametrize("finished_first", [True, False])
def test_a_finished_rank_is_released_when_another_goes_on(world: Callable[[int], World], finished_first: bool) -> None:
    made = world(2)
    first, second = made.join(0), made.join(1)
    first.report_next("call", "step")
    second.report_next("call", "step")
    acts: list[Callable[[], None]] = [second.finish, lambda: first.report_next("call", "step")]
    for act in acts if finished_first else reversed(acts):
        act()
    made.wait_for_release(1)
    assert first.failure is None and second.failure is None
    with leaving([second]) as threads:
        assert made.wait_for_aborts(1).startswith(
            "rank 1 ended before call 2, in which all take part.\n  rank 0: step\n"
        )
        assert threads[0].is_alive()  # mpiexec would kill the first
        first.leave()


@pytest.mark.usefixtures("quick_exits")
@pytest.mark.parametrize("finished_first", [True, False])
def test_all_finished_ranks_that_are_missed_are_named(world: Callable[[int], World], finished_first: bool) -> None:
    made = world(4)
    members = [made.join(rank) for rank in range(4)]
    going_on, finished = members[::3], members[1:3]
    with ThreadPoolExecutor(2) as pool:

        def go_on() -> None:
            errors.extend(pool.submit(together, [member], partial(exchange, [b""] * 4)) for member in going_on)

        errors: list[Future[list[object]]] = []
        acts: list[Callable[[], object]] = [lambda: together(finished, lambda member: member.finish()), go_on]
        for act in acts if finished_first else reversed(acts):
            act()
        made.wait_for_release(1, 2)
        with leaving(finished):
            message = made.wait_for_aborts(2)
            together(going_on, lambda member: member.leave())
    assert message.startswith("ranks 1 and 2 ended while others wait in the exchange 'x'.\n")
    assert [str(error).split(".")[0] for each in errors for error in each.result()] == [message.split(".")[0]] * 2


def test_ranks_that_finish_together_wait_for_one_another(world: Callable[[int], World]) -> None:
    made = world(3)
    members = [made.join(rank) for rank in range(3)]
    for member in members:  # the others have not come as far yet
        member.report_next("call", "step")
        member.finish()
    together(members, lambda member: member.leave())
    made.hub.wait(BOUND_SECONDS)
    assert made.aborts == []


@pytest.mark.usefixtures("quick_exits")
def test_a_released_rank_that_does_not_end_is_named(
    world: Callable[[int], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whale_tf.world.hub.RELEASED_SECONDS", 0.1)
    made = world(2)
    first, second = made.join(0), made.join(1)
    second.finish()
    first.report_next("call", "step")
    made.wait_for_release(1)
    assert made.wait_for_aborts(1).startswith("rank 1 ended before call 1, in which all take part.\n")
    assert first.failure is not None
