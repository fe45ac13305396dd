"""One call over a communicator as an operation: who takes part, under which number, and free of program order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from whale_tf.errors import DeviceError
from whale_tf.run import communicator
from whale_tf.run.communicator import FIRST_ID, PROCESSES

# The generated function of each operation, and, by its place here, the number of its eager calls. They share one: a
# number for each call would make a kernel for each call, and TensorFlow keeps all kernels.
FUNCTIONS = {
    "AllReduce": "whale_all_reduce",
    "ReduceScatter": "whale_reduce_scatter",
    "AllGather": "whale_all_gather",
    "AllToAll": "whale_all_to_all",
    "Broadcast": "whale_broadcast",
    "Send": "whale_send",
    "Receive": "whale_receive",
    "Barrier": "whale_barrier",
}
EAGER_NUMBERS = {name: number for number, name in enumerate(FUNCTIONS)}
EAGER_NUMBERS["Receive"] = EAGER_NUMBERS["Send"]  # a message has one number on both sides


@dataclass(frozen=True)
class Place:
    """Who calls and who takes part."""

    world: str
    rank: int
    ranks: tuple[int, ...]

    def attributes(self) -> dict[str, Any]:
        return {"world": self.world, "rank": self.rank, "ranks": list(self.ranks)}


def place_of(world: str, rank: int | None, ranks: Sequence[int] | None) -> Place:
    """Fills in what is left out: this process, and all processes.

    Raises:
      DeviceError: no world of processes was started; rank or ranks of a world of memory are left out.
    """
    if world != PROCESSES:
        if rank is None or ranks is None:
            raise DeviceError(
                f"world '{world}' is in this process's memory, where a call says its rank and all ranks",
                details=[f"rank is {rank}, ranks are {ranks}"],
                way_out="Give rank= and ranks=, or leave out world= for the world of processes.",
            )
        return Place(world, rank, tuple(ranks))
    found = communicator.find_world()
    if found is None:
        raise DeviceError(
            "the world of processes has not been started",
            details=["an operation over all processes was called"],
            way_out="Call whale.init() first, or give world=, rank= and ranks= for devices of this process.",
        )
    return Place(PROCESSES, found[0] if rank is None else rank, tuple(range(found[1]) if ranks is None else ranks))


def numbers_of(name: str, count: int, id: int | None) -> list[int]:
    """The numbers of `count` calls: from `id` on if it is given, else of their own."""
    if id is not None:
        return list(range(id, id + count))
    if tf.executing_eagerly():
        return [EAGER_NUMBERS[name]] * count
    first = communicator.next_ids(count)
    return list(range(first, first + count))


def gradient_number(name: str, place: Place, id: int) -> int:
    """The number for a call `name` that is the gradient of the call `id`."""
    return EAGER_NUMBERS[name] if id < FIRST_ID else communicator.gradient_id(place.world, id, place.rank)


def has_gradient(spec: Any) -> bool:
    return bool(spec.dtype.is_floating or spec.dtype.is_complex)


def call_lists(name: str, values: Any, place: Place, id: int | None, attributes: dict[str, Any]) -> Any:
    """One collective for each type among the tensors, in the order in which the types come: the same on every rank."""
    tensors = [tf.convert_to_tensor(value) for value in tf.nest.flatten(values)]
    by_type: dict[Any, list[int]] = {}
    for position, tensor in enumerate(tensors):
        by_type.setdefault(tensor.dtype, []).append(position)
    results: list[Any] = [None] * len(tensors)
    for number, positions in zip(numbers_of(name, len(by_type), id), by_type.values(), strict=True):
        outputs = call_list(name, [tensors[position] for position in positions], number, place, attributes)
        for position, output in zip(positions, outputs, strict=True):
            results[position] = output
    return tf.nest.pack_sequence_as(values, results)


def call_list(name: str, tensors: Sequence[Any], number: int, place: Place, attributes: dict[str, Any]) -> list[Any]:
    """One collective over tensors of one type."""
    function = getattr(communicator.load(), FUNCTIONS[name])
    outputs: list[Any] = function(list(tensors), id=number, **place.attributes(), **attributes)
    in_any_order(outputs[0])
    return outputs


def send_one(tensor: Any, to: int, number: int, place: Place) -> None:
    in_any_order(communicator.load().whale_send(tensor, to=to, id=number, **place.attributes()))


def receive_one(source: int, spec: Any, number: int, place: Place) -> Any:
    made = communicator.load().whale_receive(
        dtype=spec.dtype, shape=spec.shape, source=source, id=number, **place.attributes()
    )
    return in_any_order(made)


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
