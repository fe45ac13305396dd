"""Joining the world: from here on the others learn how this process ends."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from whale_tf.errors import DeviceError
from whale_tf.world.address import Address
from whale_tf.world.environment import Environment, read_address
from whale_tf.world.hub import Hub
from whale_tf.world.member import Member

LAST_SECONDS = 5.0  # how long rank 0, when the run has failed, keeps its hub for ranks that still have to hear it


def join(
    environment: Environment,
    *,
    on_abort: Callable[[str], None],
    address: Address | None = None,
    hub: Hub | None = None,
    timeout: float = 60.0,
) -> Member | None:
    """Connects this rank with the hub, and sees to it that its end is told: exceptions, and the normal one.

    Args:
      environment: rank and size.
      on_abort: called once, in a thread of its own, with the message, when the run must end.
      address: the hub's; by default that of `whale run`.
      hub: where it lives in this process: it is kept, at the end of the script, until the other ranks are gone.
      timeout: seconds to find the hub.
    Returns:
      The member; None in a world of one process.
    Raises:
      DeviceError: there is no hub, it does not answer, or this rank is there already.
    """
    if environment.size == 1:
        return None
    address = address or read_address(os.environ)
    if address is None:
        raise DeviceError(
            f"{environment} does not know where the hub of its world is",
            details=["WHALE_TF_HUB is not set, and no address was given"],
            way_out="Start the processes with `whale run`, or give the address that rank 0's Hub.start() returned.",
        )
    member = Member(environment, address, on_abort, timeout=timeout)
    atexit.register(_end, member, hub)
    _tell_exceptions(member)
    return member


def _tell_exceptions(member: Member) -> None:
    """Reports what nobody catches, then does what was done with it before."""
    before, before_in_threads = sys.excepthook, threading.excepthook

    def in_main(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)  # first: the output is there when the others are told to look at it
        member.fail(error)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        before_in_threads(args)
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            member.fail(args.exc_value)

    sys.excepthook, threading.excepthook = in_main, in_thread


def _end(member: Member, hub: Hub | None) -> None:
    """At exit. A rank that has failed has said so before: its goodbye changes nothing."""
    member.leave()
    if hub is not None:
        hub.wait(None if member.failure is None else LAST_SECONDS)
        hub.stop()
