"""Collectives and messages as TensorFlow operations.

Between processes, every rank calls the same function; nothing else needs to be said:

    total = all_reduce(gradients)

Within a process, ranks are devices that meet in a world of memory, under any name. Each rank makes its own call, all
in one `tf.function`:

    for rank in range(4):
        with tf.device(f"CPU:{rank}"):
            totals[rank] = all_reduce(gradients[rank], rank=rank, ranks=range(4), world="replicas")

One function can serve all ranks, if who calls is an argument: its `place`, of the members of a communicator.

    mesh = make_communicator(range(4), "mesh")  # or all processes: make_communicator()

    @tf.function
    def total(x, place):
        return all_reduce(x, place=place)

    totals[member] = total(gradients[member], mesh.place(member, number=k))  # on a thread of each member's own

Calls of such a function meet by their number too, whatever order they are made in and in whatever steps of TensorFlow.
A number stands for one call of each member at a time; after an error between processes others must be used, since a
message may still come under the old ones. Beside a place, `root`, `to` and `source` name members.

`ranks` is who takes part, in the order of the result: by default all processes. `label` says which call of the program
it is. Calls with one label meet, whatever the order in which each rank traces and calls the functions they are in. By
default it is the function and the line, and in a tf.function how often the line was traced. Ranks that make one call at
different lines, or in functions of different names, give it themselves.

Values are a tensor or any structure of tensors. A call moves all of them at once, and what is small is packed together.
Calls in one function start as soon as their inputs are there, in any order, and so do iterations of a loop. Within a
process, a loop, a branch or an inner `tf.function` that holds calls must hold those of all ranks: TensorFlow runs such
parts one after another.

A call fails, and never hangs, with DeadlineExceededError, UnavailableError, CancelledError or InvalidArgumentError of
`tf.errors`, on all its ranks:

- when one of them does not come for longer than `communicator.set_timeout` allows, leaves or fails;
- when its step is cancelled on one of them;
- when they bring other types, shapes (but for the rows of an `all_gather`) or reductions;
- when one makes it while it is under way, as two threads do that call one function: it cannot tell which of the two the
  other ranks make.

Where ranks do not come or do not fit together, the error lists in which calls each of them is. Other calls go on, and
the function may be called again.

The kernels are for the CPU and work in host memory. With tensors of a GPU they were not tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from whale_tf.errors import DeviceError, PlanError
from whale_tf.run import communicator
from whale_tf.run import gradients as gradients  # registers them
from whale_tf.run.calls import (
    Place,
    call_lists,
    has_gradient,
    in_any_order,
    place_of,
    receive_one,
    send_one,
    several,
)
from whale_tf.run.communicator import PROCESSES
from whale_tf.run.communicator import make_communicator as make_communicator
from whale_tf.run.labels import counted, label_here, label_of_message


def all_reduce(
    values: Any,
    reduction: str = "sum",
    *,
    scale: float = 1.0,
    ranks: Sequence[int] | None = None,
    rank: int | None = None,
    world: str = PROCESSES,
    label: str | None = None,
    place: Any = None,
) -> Any:
    """scale * the reduction of all ranks' values: the same bits on every rank.

    The gradient of a sum is the sum over the ranks of their gradients, of a mean their mean, both scaled. All ranks'
    results must then lead to what is differentiated.

    Args:
      values: float16, bfloat16, float32, float64, int32, int64 or bool, with the same types and shapes on every rank.
      reduction: "sum", "mean", "max", "min" or "product"; of bools, "sum" and "max" say whether any is true, "product"
        and "min" whether all are. "mean", and a `scale` other than 1, are for floats only.
    Raises:
      PlanError: a gradient of "max", "min" or "product" is asked for.
    """
    at = place_of(world, rank, ranks, place)
    attributes = {"reduction": reduction, "scale": scale}
    return call_lists("AllReduce", values, at, label_here(at.caller, label), attributes)


def reduce_scatter(
    values: Any,
    reduction: str = "sum",
    *,
    scale: float = 1.0,
    ranks: Sequence[int] | None = None,
    rank: int | None = None,
    world: str = PROCESSES,
    label: str | None = None,
    place: Any = None,
    members: int | None = None,
) -> Any:
    """This rank's part of what `all_reduce` gives: `[ranks * n, ...]` becomes `[n, ...]`.

    The rank at place k of `ranks` gets the k-th part along dim 0. The gradient of sum and mean is an `all_gather`.

    Args:
      values: as for `all_reduce`; dim 0 is a multiple of the number of ranks.
      reduction: as for `all_reduce`.
      members: how many ranks there are; needed with `place`, which does not say it before it runs.
    Raises:
      PlanError: a gradient of "max", "min" or "product" is asked for.
    """
    at = place_of(world, rank, ranks, place)
    attributes = {"reduction": reduction, "scale": scale, "rows": [], "members": at.size(members)}
    return call_lists("ReduceScatter", values, at, label_here(at.caller, label), attributes)


def all_gather(
    values: Any,
    *,
    ranks: Sequence[int] | None = None,
    rank: int | None = None,
    world: str = PROCESSES,
    label: str | None = None,
    place: Any = None,
) -> Any:
    """All ranks' values one after another along dim 0: `[n, ...]` becomes `[sum of the ranks' n, ...]`.

    Each rank may bring another `n`, also 0, for each tensor. The gradient is a `reduce_scatter` of the ranks'
    gradients, in parts of these sizes.

    Args:
      values: any plain type or strings, with a dim 0; types and all other dims are the same on every rank. At most 8192
        tensors of one type.
    """
    at = place_of(world, rank, ranks, place)
    return call_lists("AllGather", values, at, label_here(at.caller, label), {})


def all_to_all(
    values: Any,
    *,
    ranks: Sequence[int] | None = None,
    rank: int | None = None,
    world: str = PROCESSES,
    label: str | None = None,
    place: Any = None,
    members: int | None = None,
) -> Any:
    """Part k along dim 0 goes to the rank at place k, and the part that comes from it takes its place.

    The gradient is the same operation.

    Args:
      values: any plain type, `[ranks * n, ...]`, with the same types and shapes on every rank.
      members: as for `reduce_scatter`.
    """
    at = place_of(world, rank, ranks, place)
    return call_lists("AllToAll", values, at, label_here(at.caller, label), {"members": at.size(members)})


def broadcast(
    values: Any,
    root: int = 0,
    *,
    ranks: Sequence[int] | None = None,
    rank: int | None = None,
    world: str = PROCESSES,
    label: str | None = None,
    place: Any = None,
) -> Any:
    """The values of rank `root`, on every rank.

    The gradient is the sum of the ranks' gradients on the root, and zero elsewhere.

    Args:
      values: any plain type; the values of other ranks only give types and shapes, the same on every rank.
      root: a rank, one of `ranks`; with `place` a member.
    Raises:
      DeviceError: `root` is not among the ranks.
    """
    at = place_of(world, rank, ranks, place)
    return call_lists("Broadcast", values, at, label_here(at.caller, label), {"root": at.member(root)})


def send(
    values: Any,
    to: Any,
    *,
    ranks: Sequence[int] | None = None,
    rank: int | None = None,
    world: str = PROCESSES,
    label: str | None = None,
    place: Any = None,
) -> Any:
    """Sends values to another rank, which calls `receive`.

    Eagerly it returns when the memory of `values` is free again, which may be only when they are received.

    Args:
      values: any plain type; each tensor is a message of its own.
      to: a rank; with `place` a member, an int or an int32 scalar.
      ranks: all ranks of a world of memory; both sides give the same.
    Returns:
      a token, the float 0.0. To differentiate through the message add it to the loss: the gradient of what was sent
      then comes from the receiver.
    """
    at = place_of(world, rank, ranks, place)
    tensors = [tf.convert_to_tensor(value) for value in tf.nest.flatten(values)]
    labels = several(_label_of_message(at, at.caller, to, "sender", label), len(tensors))
    receiver = at.member(to)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def sent(*given: Any) -> Any:
        for tensor, each in zip(given, labels, strict=True):
            send_one(tensor, receiver, at, each)

        def gradient(_: Any) -> Any:
            back = [counted(f"gradient of {each}", (at.caller, "receiver")) for each in labels]
            specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in given]
            return [
                receive_one(receiver, spec, at, each) if has_gradient(spec) else None
                for spec, each in zip(specs, back, strict=True)
            ]

        return tf.zeros([]), gradient

    return sent(*tensors)


def receive(
    source: Any,
    spec: Any,
    *,
    token: Any = None,
    ranks: Sequence[int] | None = None,
    rank: int | None = None,
    world: str = PROCESSES,
    label: str | None = None,
    place: Any = None,
) -> Any:
    """What rank `source` sends here.

    Args:
      source: a rank; with `place` a member, an int or an int32 scalar.
      spec: a `tf.TensorSpec`, or a structure of them, for the types and what is known of the shapes.
      token: a float scalar on which a gradient depends, as one from `send` in this process, or 0.0 times a parameter
        elsewhere. With it, the gradient of what was received is sent back to the source; without it, it is lost.
      ranks: all ranks of a world of memory; both sides give the same.
    """
    at = place_of(world, rank, ranks, place)
    specs = tf.nest.flatten(spec)
    labels = several(_label_of_message(at, source, at.caller, "receiver", label), len(specs))
    sender = at.member(source)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def received(_: Any) -> Any:
        values = [receive_one(sender, one, at, each) for one, each in zip(specs, labels, strict=True)]

        def gradient(*gradients: Any) -> Any:
            back = [counted(f"gradient of {each}", (at.caller, "sender")) for each in labels]
            for one, value, each in zip(specs, gradients, back, strict=True):
                if has_gradient(one):
                    send_one(value, sender, at, each)
            return tf.zeros([])

        return values, gradient

    return tf.nest.pack_sequence_as(spec, received(tf.zeros([]) if token is None else token))


def barrier(
    *,
    ranks: Sequence[int] | None = None,
    rank: int | None = None,
    world: str = PROCESSES,
    label: str | None = None,
    place: Any = None,
) -> Any:
    """Waits until all ranks have come to it.

    In a function, control dependencies say what comes before it and after it.
    """
    at = place_of(world, rank, ranks, place)
    return in_any_order(communicator.load().whale_barrier(at.tensor, label=label_here(at.caller, label)))


def _label_of_message(at: Place, source: Any, to: Any, end: str, label: str | None) -> str:
    """The label of a message, as its `end` makes it; a place does not say which ranks are its ends."""
    ends = "" if at.caller is None else f"from {source} to {to}"
    return label_of_message(ends, (at.caller, end), label)


def add_contributions(contributions: Sequence[Sequence[Any]], *, scale: float = 1.0) -> list[Any]:
    """scale * the sum of each list of tensors, in its order: all lists in one pass over memory.

    Args:
      contributions: lists of equal length; the tensors of a list have one shape, and all have one type.
      scale: for floats only if it is not 1.
    """
    parts = {len(each) for each in contributions}
    if len(parts) != 1:
        raise PlanError(
            "every sum has the same number of contributions",
            details=[f"sum {k} has {len(each)}" for k, each in enumerate(contributions)],
            way_out="Call add_contributions once for each number.",
        )
    flat = [tensor for each in contributions for tensor in each]
    module = communicator.load()
    sums: list[Any] = module.whale_sum(flat, K=len(contributions), parts=parts.pop(), scale=scale)
    return sums


def read_shard(value: Any, rank: int, size: int) -> Any:
    """Part `rank` of `size` equal parts of a variable's or tensor's elements: `[ceil(elements / size)]`.

    The last parts are filled with zeros. There is no gradient.

    Args:
      value: a variable, which is not copied as a whole, or a tensor, of any plain type.
    """
    module = communicator.load()
    variable = _variable(value)
    if variable is None:
        return module.whale_shard(value, rank=rank, size=size)
    return module.whale_read_shard(variable.handle, rank=rank, size=size, dtype=variable.dtype)


def assign_shards(variable: Any, values: Any, size: int) -> Any:
    """Writes gathered shards back into a variable, in place where nobody reads the old value.

    Args:
      variable: keeps its shape.
      values: `[size * ceil(elements / size)]`, the shards of all ranks one after another, as `all_gather` gives them.
    Raises:
      DeviceError: `variable` is none.
    """
    found = _variable(variable)
    if found is None:
        raise DeviceError(
            "shards are written to a variable",
            details=[f"a {type(variable).__name__} was given"],
            way_out="Give the tf.Variable or keras.Variable.",
        )
    return communicator.load().whale_assign_shards(found.handle, values, size=size)


def _variable(value: Any) -> Any:
    """The tf.Variable that this is or, if Keras made it, stands for; None if it is neither."""
    if isinstance(value, keras.Variable):
        return value.value
    return value if isinstance(value, tf.Variable) else None
