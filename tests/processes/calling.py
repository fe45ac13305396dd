"""A script whose ranks call collectives of their own, outside steps. Its argument names what they do.

Each rank prints what it has found, in lines of its own.
"""

from __future__ import annotations

import atexit
import ctypes
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import cancellation  # private; tried with 2.21

import whale_tf as whale
from whale_tf.run import communicator, ops
from whale_tf.run.calls import in_any_order

ROUNDS = 100
THREAD_SERIALIZED, THREAD_MULTIPLE = 2048, 4096  # of MPI's standard binary interface
COMM_WORLD, INT64, SUM = 0x101, 0x258, 0x21
SECONDS = 60.0
# Lines that TensorFlow adds: where an operation was made, and what it is called.
ADDED = r'\s*(Graph execution error|Detected at|File "|Executing non-communication|\[\[)'


@tf.function
def total(x: tf.Tensor) -> tf.Tensor:
    return ops.all_reduce(x)


@tf.function
def largest(x: tf.Tensor) -> tf.Tensor:
    return helper(x, "max")


@tf.function
def smallest(x: tf.Tensor) -> tf.Tensor:
    return helper(x, "min")


def helper(x: tf.Tensor, reduction: str) -> tf.Tensor:
    return ops.all_reduce(x, reduction)


@tf.function
def failing(x: tf.Tensor, divisor: tf.Tensor) -> tf.Tensor:
    """Its collective can begin at once; what may fail beside it comes after many turns of a loop."""
    last = tf.while_loop(lambda y: y < 10.0 * ROUNDS, lambda y: (y + 1.0,), (x,))[0]
    checked = tf.debugging.check_numerics(last / divisor, "divided by zero")
    return ops.all_reduce(x) + checked / last - 1.0


@tf.function
def together(x: tf.Tensor) -> tf.Tensor:
    """Iterations that may overlap."""
    return tf.map_fn(lambda row: ops.all_reduce(row), x, parallel_iterations=10)


def in_a_loop(x: tf.Tensor, member: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums of sums, numbered 10 to 12, and what their sum over the members gives for x."""
    everybody, factor = ops.make_communicator(), tf.cast(member + 1, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        _, y = tf.while_loop(
            lambda k, _: k < 13,
            lambda k, y: (k + 1, ops.all_reduce(y * factor, place=everybody.place(member, number=k))),
            (tf.constant(10), x),
        )
    return y, tape.gradient(y, x)


def told(error: tf.errors.OpError) -> str:
    """One line of an error: its class, and the message without what TensorFlow adds."""
    text = re.sub(r"\{\{[^}]*\}\} ?", "", str(error.message))
    lines = [line.strip() for line in text.split("\n") if not re.match(ADDED, line)]
    return f"{type(error).__name__}: " + " | ".join(line for line in lines if line)


def said(call: Callable[[], Any]) -> str:
    try:
        return f"{call().numpy().tolist()}"
    except tf.errors.OpError as error:
        return told(error)


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """What each call gives, all running at the same time."""
    results: list[Any] = [None] * len(calls)

    def run(k: int) -> None:
        results[k] = calls[k]()

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a call hangs"
    return results


def wrong(function: Callable[[tf.Tensor], tf.Tensor], own: float, expected: float) -> int:
    """How many of ROUNDS calls of `function` are wrong: each round adds its number to all values, and to the result."""
    return sum(float(function(tf.constant(own + k, tf.float32))) != expected + k for k in range(ROUNDS))


def order(rank: int, size: int) -> None:
    """Two functions, traced and called in another order on each rank, that share the line of their collective."""
    names = [largest, smallest] if rank % 2 == 0 else [smallest, largest]
    for function in names:
        function.get_concrete_function(tf.TensorSpec([]))
    expected = {largest: size - 1.0, smallest: 0.0}
    counts = in_threads(*(lambda f=f: wrong(f, rank, expected[f]) for f in names))
    print(f"wrong: {counts}", flush=True)


def traced(rank: int, size: int) -> None:
    """Functions traced in another order, then called in the same one."""
    for function in [total, largest, smallest][:: 1 if rank == 0 else -1]:
        function.get_concrete_function(tf.TensorSpec([]))
    print(f"found: {[float(f(tf.constant(rank + 1.0))) for f in (total, largest, smallest)]}", flush=True)


def iterations(rank: int, size: int) -> None:
    """Loops that overlap; other ranks have traced something else before."""
    for _ in range(rank):
        tf.function(lambda: tf.map_fn(tf.square, tf.range(3.0)))()
    rows = tf.reshape(tf.range(200.0), [50, 4]) + rank
    found = together(rows)
    expected = size * tf.reshape(tf.range(200.0), [50, 4]) + sum(range(size))
    print(f"right: {bool(tf.reduce_all(found == expected))}", flush=True)


def places(rank: int, size: int) -> None:
    """Functions that take who calls: numbers in another order on each rank, and in a loop with its gradient."""
    everybody, attributes = ops.make_communicator(), {"_noinline": True}
    one = tf.function(lambda x, place: ops.all_reduce(x, place=place, label="one"), experimental_attributes=attributes)
    function = one.get_concrete_function(tf.TensorSpec([]), tf.TensorSpec([3], tf.int64))

    @tf.function
    def numbered() -> list[tf.Tensor]:
        found = {}
        for k in range(4):
            number = (rank + k) % 4
            found[number] = in_any_order(function(tf.constant(10.0 * number + rank), everybody.place(rank, number)))
        return [found[number] for number in range(4)]

    for _ in range(2):
        print(f"found: {[float(each) for each in numbered()]}", flush=True)
    y, gradient = tf.function(in_a_loop)(tf.constant(1.0), tf.constant(rank))
    print(f"loop: {float(y)}, {float(gradient)}", flush=True)
    other = everybody.place((rank + 1) % size, number=0)
    print(said(lambda: ops.all_reduce(1.0, place=other)), flush=True)
    print(said(lambda: ops.all_reduce(1.0, place=tf.constant([99, rank, 0], tf.int64))), flush=True)


def two_threads(rank: int, size: int) -> None:
    """On rank 0 two threads call one function, and the others come to it later."""
    x = tf.constant(1.0)
    total.get_concrete_function(tf.TensorSpec([]))
    if rank == 0:
        for result in in_threads(*2 * [lambda: said(lambda: total(x))]):
            print(result, flush=True)
        ops.barrier(label="told")
    else:
        ops.barrier(label="told")
        print(said(lambda: total(x)), flush=True)
    print(said(lambda: total(x)), flush=True)


def shapes(rank: int, size: int) -> None:
    print(said(lambda: ops.all_reduce(tf.zeros([2, 3] if rank else [3, 2]))), flush=True)
    print(said(lambda: ops.all_reduce(tf.zeros([2], tf.float64 if rank else tf.float32))), flush=True)
    print(said(lambda: ops.all_reduce(tf.zeros([2]), "max" if rank else "sum")), flush=True)


def rows(rank: int, size: int) -> None:
    """Each rank gathers other numbers of rows, of large, small and string tensors, and differentiates through it."""
    counts = [(2 * r + 1) % 4 for r in range(size)]
    large = [tf.fill([5000 * (r % 2), 100], float(r)) for r in range(size)]
    small = [tf.range(counts[r]) + 10 * r for r in range(size)]
    names = [tf.strings.as_string(each) for each in small]
    for _ in range(3):
        found = ops.all_gather({"large": large[rank], "small": small[rank], "names": names[rank]}, label="rows")
        joined = {"large": large, "small": small, "names": names}
        same = [tf.reduce_all(found[key] == tf.concat(each, 0)) for key, each in joined.items()]
        print(f"right: {all(bool(each) for each in same)}", flush=True)
    x = tf.ones([counts[rank], 2])
    weights = tf.reshape(tf.range(2.0 * sum(counts)), [-1, 2])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum((rank + 1.0) * weights * ops.all_gather(x, label="differentiated"))
    begin = sum(counts[:rank])
    expected = size * (size + 1) / 2 * weights[begin : begin + counts[rank]]
    print(f"right: {bool(tf.reduce_all(tape.gradient(loss, x) == expected))}", flush=True)
    print(said(lambda: ops.all_gather(tf.zeros([2, 3 + rank]), label="differs")), flush=True)


def late(rank: int, size: int) -> None:
    """Rank 0 waits in one function, the last rank in none, the others in another function."""
    function = largest if rank == 0 else smallest
    function.get_concrete_function(tf.TensorSpec([]))
    ops.barrier(label="all are ready")
    communicator.set_timeout(1.0)
    if rank < size - 1 or size == 2:
        print(said(lambda: function(tf.constant(1.0))), flush=True)
    else:
        time.sleep(5.0)


def failed(rank: int, size: int) -> None:
    """An operation of rank 0 fails beside its collective, for which the others come later; another function goes on."""
    one, zero = tf.constant(1.0), tf.constant(0.0)

    def fails() -> str:
        if rank == 0:
            result = said(lambda: failing(one, zero))
            ops.barrier(label="failed")
            return result
        ops.barrier(label="failed")
        return said(lambda: failing(one, one))

    counts, result = in_threads(lambda: wrong(largest, rank, size - 1.0), fails)
    print(f"wrong: {counts}", flush=True)
    print(result, flush=True)
    print(said(lambda: failing(one, one)), flush=True)


def cancelled(rank: int, size: int) -> None:
    """Rank 0 cancels its call, for which the others have not come; another function goes on meanwhile."""
    x = tf.constant(1.0)
    if rank == 0:
        manager = cancellation.CancellationManager()
        function = manager.get_cancelable_function(total.get_concrete_function(tf.TensorSpec([])))
        waiting = threading.Timer(0.5, manager.start_cancel)
        waiting.start()
        print(said(lambda: function(x)), flush=True)
    print(f"wrong: {wrong(largest, rank, size - 1.0)}", flush=True)
    if rank > 0:
        print(said(lambda: total(x)), flush=True)
    print(said(lambda: total(x)), flush=True)


def start_mpi(level: int) -> ctypes.CDLL:
    mpi = ctypes.CDLL(str(communicator.find_mpi()))
    provided = ctypes.c_int()
    assert mpi.MPI_Init_thread(None, None, level, ctypes.byref(provided)) == 0
    assert provided.value == level
    atexit.register(mpi.MPI_Finalize)  # the last that happens
    return mpi


def serialized() -> None:
    """The script has started MPI in a way that lets only one thread call it at a time."""
    start_mpi(THREAD_SERIALIZED)
    whale.init(devices=1)


def beside(rank: int, size: int, mpi: ctypes.CDLL) -> None:
    """The script's own sums by MPI, on the main thread, while another one calls whale_tf's."""

    def own() -> int:
        count = 0
        for k in range(20 * ROUNDS):
            value, result = ctypes.c_int64(k + rank), ctypes.c_int64()
            handles = ctypes.c_void_p(INT64), ctypes.c_void_p(SUM), ctypes.c_void_p(COMM_WORLD)
            mpi.MPI_Allreduce(ctypes.byref(value), ctypes.byref(result), 1, *handles)
            count += result.value != size * k + sum(range(size))
        return count

    counts = in_threads(own, lambda: wrong(largest, rank, size - 1.0))
    print(f"wrong: {counts}", flush=True)


SCENES = [order, traced, iterations, places, two_threads, shapes, rows, late, failed, cancelled]


def main() -> None:
    """Runs the scene that the argument names."""
    name = sys.argv[1]
    if name == "serialized":
        return serialized()
    mpi = start_mpi(THREAD_MULTIPLE) if name == "beside" else None
    rank = whale.init(devices=1).rank
    size = communicator.start_world()[1]
    communicator.set_timeout(30.0)
    if mpi is not None:
        return beside(rank, size, mpi)
    {scene.__name__: scene for scene in SCENES}[name](rank, size)
    return None


if __name__ == "__main__":
    main()
