"""One process of a contender: makes its tensors, checks their sums, and all-reduces them in its turns.

python -m benchmarks.all_reduce.contender {whale,grpc,mpi} [--small] [--ports A B]
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

import whale_tf as whale
from benchmarks.all_reduce.tensors import Shapes, workloads
from benchmarks.groups import serve, tf_config, use_one_core
from whale_tf.run.communicator import find_mpi, find_world
from whale_tf.run.ops import all_reduce

# Handles of the standard ABI of MPI 5, the same in every MPI that has it.
MPI_COMM_WORLD, MPI_FLOAT, MPI_SUM = (ctypes.c_void_p(value) for value in (0x101, 0x210, 0x21))

Reduce = Callable[[], Sequence[Any]]
# Gives, for tensors of these shapes that are full of one number, the call to measure.
Contender = Callable[[Shapes, float], Reduce]


def compiled(reduce: Callable[[list[Any]], Any], shapes: Shapes, number: float) -> Reduce:
    """The reduction of eager tensors in a `tf.function`, as a call."""
    values = [tf.fill(shape, number) for shape in shapes]
    function = tf.function(reduce)
    return lambda: function(values)


def whale_contender() -> tuple[int, Contender]:
    """whale's operation: all tensors in one call."""
    whale.init(devices=1)
    world = find_world()
    assert world is not None  # `whale run` started several processes
    return world[0], partial(compiled, all_reduce)


def grpc_contender(ports: Sequence[int]) -> tuple[int, Contender]:
    """CollectiveReduceV2 between workers, packed and called as MultiWorkerMirroredStrategy does it for gradients."""
    rank = tf_config(ports)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def replica_reduce(values: list[Any]) -> Any:
        placed = [tf.identity(value) for value in values]  # the strategy asks each tensor for its device
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed)

    return rank, partial(compiled, lambda values: strategy.run(replica_reduce, args=(values,)))


def mpi_contender() -> tuple[int, Contender]:
    """MPI_Allreduce from one buffer into another, once for each tensor; no TensorFlow."""
    mpi = ctypes.CDLL(str(find_mpi()))
    mpi.MPI_Init(None, None)
    rank = ctypes.c_int()
    mpi.MPI_Comm_rank(MPI_COMM_WORLD, ctypes.byref(rank))

    def prepare(shapes: Shapes, number: float) -> Reduce:
        pairs = [(np.full(shape, number, np.float32), np.zeros(shape, np.float32)) for shape in shapes]

        def call() -> Sequence[Any]:
            for given, total in pairs:
                buffers = ctypes.c_void_p(given.ctypes.data), ctypes.c_void_p(total.ctypes.data)
                code = mpi.MPI_Allreduce(*buffers, ctypes.c_int(given.size), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD)
                if code != 0:
                    raise RuntimeError(f"MPI_Allreduce of {given.size} floats returned {code} on rank {rank.value}")
            return [total for _, total in pairs]

        return call

    return rank.value, prepare


def checked(name: str, reduce: Reduce) -> Callable[[], None]:
    """The call without its result, once its result was seen to be 1 + 2."""
    for index, total in enumerate(reduce()):
        if not np.all(np.asarray(total) == 3.0):
            raise ValueError(f"{name}: tensor {index} is not the sum of the ranks' tensors, 3, but {total}")

    def step() -> None:
        reduce()

    return step


def main() -> None:
    """Serves turns until the benchmark ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("contender", choices=["whale", "grpc", "mpi"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--ports", type=int, nargs=2, help="of the workers, for grpc")
    options = parser.parse_args()
    use_one_core()
    contenders: dict[str, Callable[[], tuple[int, Contender]]] = {
        "whale": whale_contender,
        "grpc": lambda: grpc_contender(options.ports),
        "mpi": mpi_contender,
    }
    rank, prepare = contenders[options.contender]()
    steps = {
        name: checked(name, prepare(shapes, rank + 1.0)) for name, shapes in workloads(small=options.small).items()
    }
    serve(steps)


if __name__ == "__main__":
    main()
