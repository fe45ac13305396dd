"""One call over a communicator as an operation: who takes part, under which label, and free of program order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from whale_tf.errors import DeviceError
from whale_tf.run import communicator
from whale_tf.run.communicator import PROCESSES

# The generated function of each operation.
FUNCTIONS = {
    "AllReduce": "whale_all_reduce",
    "ReduceScatter": "whale_reduce_scatter",
    "AllGather": "whale_all_gather",
    "AllToAll": "whale_all_to_all",
    "Broadcast": "whale_broadcast",
}


@dataclass(frozen=True)
class Place:
    """Who calls, and among whom.

    Attributes:
      tensor: [communicator, member, number], int64: what the operations take.
      ranks: of the members; None where only the tensor knows.
      caller: the rank; None where only the tensor knows.
    """

    tensor: Any
    ranks: tuple[int, ...] | None = None
    caller: int | None = None

    def member(self, rank: Any) -> Any:
        """The member that has a rank; where ranks are not known, members are named as such.

        Raises:
          DeviceError: no member has it.
        """
        if self.ranks is None:
            return rank
        if rank in self.ranks:
            return self.ranks.index(rank)
        raise DeviceError(
            "the root, sender and receiver of a call take part in it",
            details=[f"rank {rank} does not; the ranks are {list(self.ranks)}"],
            way_out=f"Name one of the ranks, as {self.ranks[0]}, or give ranks= with {rank} among them.",
        )

    def size(self, members: int | None) -> int:
        """How many members there are; `members` says it where ranks are not known.

        Raises:
          DeviceError: it is not said.
        """
        if self.ranks is not None:
            return len(self.ranks)
        if members is not None:
            return members
        raise DeviceError(
            "the shapes of scattered and exchanged values follow from the number of members",
            details=["place= is given, and members= is not"],
            way_out="Give members=, as the size of the communicator.",
        )


def place_of(world: str, rank: int | None, ranks: Sequence[int] | None, place: Any) -> Place:
    """The place that is given, or that of a rank among ranks: if left out this process, among all processes.

    Raises:
      DeviceError: ranks that cannot call together, or are given beside a place; no world of processes was started; rank
        or ranks of a world of memory are left out.
    """
    if place is not None:
        if world != PROCESSES or rank is not None or ranks is not None:
            raise DeviceError(
                "a place says who calls and among whom",
                details=[f"beside place=, world is '{world}', rank is {rank}, ranks are {ranks}"],
                way_out="Leave out world=, rank= and ranks=, or place=.",
            )
        return Place(place)
    if world != PROCESSES and (rank is None or ranks is None):
        raise DeviceError(
            f"world '{world}' is in this process's memory, where a call says its rank and all ranks",
            details=[f"rank is {rank}, ranks are {ranks}"],
            way_out="Give rank= and ranks=, or leave out world= for the world of processes.",
        )
    members = communicator.make_communicator(ranks, world)
    if rank is None:
        rank, _ = communicator.find_world() or (-1, 0)
    if rank not in members.ranks:
        raise DeviceError(
            "the caller's rank is one of the ranks",
            details=[f"rank is {rank}, ranks are {list(members.ranks)} of world '{world}'"],
            way_out="Let only these ranks call, or give ranks= with the caller's among them.",
        )
    return Place(members.place(members.ranks.index(rank)), members.ranks, rank)


def has_gradient(spec: Any) -> bool:
    return bool(spec.dtype.is_floating or spec.dtype.is_complex)


def call_lists(name: str, values: Any, place: Place, label: str, attributes: dict[str, Any]) -> Any:
    """One collective for each type among the tensors, in the order in which the types come: the same on every rank."""
    tensors = [tf.convert_to_tensor(value) for value in tf.nest.flatten(values)]
    by_type: dict[Any, list[int]] = {}
    for position, tensor in enumerate(tensors):
        by_type.setdefault(tensor.dtype, []).append(position)
    results: list[Any] = [None] * len(tensors)
    for label_of_type, positions in zip(several(label, len(by_type)), by_type.values(), strict=True):
        outputs = call_list(name, [tensors[position] for position in positions], place, label_of_type, attributes)
        for position, output in zip(positions, outputs, strict=True):
            results[position] = output
    return tf.nest.pack_sequence_as(values, results)


def several(label: str, count: int) -> list[str]:
    """A label for each of several operations that are one call of the user's."""
    return [label if k == 0 else f"{label}, part {k + 1}" for k in range(count)]


def call_list(name: str, tensors: Sequence[Any], place: Place, label: str, attributes: dict[str, Any]) -> list[Any]:
    """One collective over tensors of one type."""
    function = getattr(communicator.load(), FUNCTIONS[name])
    made = function(place.tensor, list(tensors), label=label, **attributes)
    outputs: list[Any] = tf.nest.flatten(made)[: len(tensors)]  # an all-gather tells the ranks' rows besides
    in_any_order(outputs[0])
    return outputs


def send_one(tensor: Any, to: Any, place: Place, label: str) -> None:
    """To a member."""
    in_any_order(communicator.load().whale_send(place.tensor, tf.cast(to, tf.int32), tensor, label=label))


def receive_one(source: Any, spec: Any, place: Place, label: str) -> Any:
    """From a member."""
    attributes = {"dtype": spec.dtype, "shape": spec.shape, "label": label}
    return in_any_order(communicator.load().whale_receive(place.tensor, tf.cast(source, tf.int32), **attributes))


def in_any_order(made: Any) -> Any:
    """Lets an operation of a function start when its inputs are there, and lets the function wait for its end.

    TensorFlow would run operations with side effects in the order of the program: those of one rank before those of the
    next, which they wait for.
    """
    if not tf.executing_eagerly():
        operation = made.op if isinstance(made, tf.Tensor) else made
        # Has no public face; tried with TensorFlow 2.21.
        manager = operation.graph.experimental_acd_manager
        if manager is not None:
            manager.run_independently(operation)
    return made
