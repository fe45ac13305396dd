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
    made = function(list(tensors), label=label, **place.attributes(), **attributes)
    outputs: list[Any] = tf.nest.flatten(made)[: len(tensors)]  # an all-gather tells the ranks' rows besides
    in_any_order(outputs[0])
    return outputs


def send_one(tensor: Any, to: int, place: Place, label: str) -> None:
    in_any_order(communicator.load().whale_send(tensor, to=to, label=label, **place.attributes()))


def receive_one(source: int, spec: Any, place: Place, label: str) -> Any:
    made = communicator.load().whale_receive(
        dtype=spec.dtype, shape=spec.shape, source=source, label=label, **place.attributes()
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
