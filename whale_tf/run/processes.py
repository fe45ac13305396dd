"""This process among all processes of a run: what they agree on before they compute together."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import tensorflow as tf

from whale_tf.errors import PlanError, RunError
from whale_tf.ir.functions import called
from whale_tf.ir.graph import Graph
from whale_tf.ir.text import print_graph
from whale_tf.run.ops import broadcast
from whale_tf.world import Member
from whale_tf.world.agreement import by_ranks, first_difference

# What MPI carries as it is; values of other types are few and small, and go to all as bytes.
CARRIED = (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int32, tf.int64, tf.bool)

FAILED = "failed"
LONGEST_LINE = 160  # of a program that an error shows


@dataclass(frozen=True)
class World:
    """All processes of a run, as one of them sees it.

    Attributes:
      rank: the number of this process.
      size: how many there are.
      member: the connection over which they agree.
      timeout: seconds that one waits for another.
      steps: numbers for steps, in the order in which they are first used.
    """

    rank: int
    size: int
    member: Member
    timeout: float
    steps: Iterator[int] = field(default_factory=itertools.count)

    def exchange(self, name: str, payload: bytes) -> list[bytes]:
        """Every process's payload, in the order of ranks.

        Raises:
          RunError: a process is missing, has failed, or exchanges something else.
        """
        return self.member.exchange(name, payload, self.timeout)


def agree(world: World, step: str, facts: Mapping[str, str], text: Callable[[], str]) -> None:
    """Compares what all processes are about to run.

    Args:
      step: the step's name.
      facts: what must be the same, each in one line: shapes, devices, digests.
      text: the program; it is only asked for, and sent, where only digests differ.
    Raises:
      PlanError: they differ; it names the ranks and what differs, on every rank alike.
    """
    payload = json.dumps(dict(facts)).encode()
    found = [json.loads(each) for each in world.exchange(f"the plan of step '{step}'", payload)]
    failed = {rank: each[FAILED] for rank, each in enumerate(found) if FAILED in each}
    if failed:
        raise PlanError(
            f"step '{step}' has failed in other processes before it ran",
            details=[f"rank {rank}: {error}" for rank, error in failed.items()],
            way_out="Run the same script with the same arguments in every process; see what those ranks have printed.",
        )
    names = dict.fromkeys(name for each in found for name in each)
    differing = [name for name in names if len({each.get(name) for each in found}) > 1]
    if not differing:
        return
    details = []
    for name in differing:
        said = {rank: each.get(name, "(nothing)") for rank, each in enumerate(found)}
        details += [f"{name}: {line}" for line in by_ranks(said)]
    written = world.exchange(f"the program of step '{step}'", zlib.compress(text().encode()))
    programs = {rank: zlib.decompress(each).decode() for rank, each in enumerate(written)}
    if len(set(programs.values())) > 1:
        lines = first_difference(programs)
        details += by_ranks({rank: line[:LONGEST_LINE] for rank, line in lines.items()})
    raise PlanError(
        f"the processes do not run the same step '{step}'",
        details=details,
        way_out="Run the same script with the same arguments and inputs of the same shapes in every process; "
        "what depends on the rank may only be outside the step.",
    )


def tell_failure(world: World, step: str, error: Exception) -> None:
    """Tells the others, who are about to agree on a step, that this process cannot run it."""
    lines = str(error).strip().splitlines() or [""]
    said = lines[-1].strip() if lines[0].startswith("in user code") else lines[0]  # AutoGraph puts its own before
    payload = json.dumps({FAILED: f"{type(error).__name__}: {said}"}).encode()
    with contextlib.suppress(RunError):  # what this process has to tell is its own error
        world.exchange(f"the plan of step '{step}'", payload)


def share(world: World, dtype: tf.DType, values: list[tf.Tensor], source: int = 0) -> list[tf.Tensor]:
    """The values that one process has, in all of them; those of the others only give the shapes."""
    if dtype in CARRIED:
        return list(broadcast(values, source, label=f"variables of type {dtype.name}"))
    written = json.dumps([tf.io.serialize_tensor(value).numpy().hex() for value in values]).encode()
    given = world.exchange(f"variables of type {dtype.name}", written if world.rank == source else b"")[source]
    return [tf.io.parse_tensor(bytes.fromhex(text), dtype) for text in json.loads(given)]


def program_text(graph: Graph, calls: Mapping[str, Graph]) -> str:
    """A program as text, with the functions it refers to."""
    bodies = called([graph], calls).items()
    return "\n".join([print_graph(graph), *(print_graph(body, name) for name, body in bodies)])


def digest_of(text: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
