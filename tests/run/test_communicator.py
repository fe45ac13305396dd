"""The library, MPI's place, and ranks that are processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from whale_tf.errors import DeviceError
from whale_tf.run import communicator

ROOT = Path(__file__).parent.parent.parent
MPIEXEC = Path(sys.prefix) / "bin" / "mpiexec"
needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="mpiexec of the mpich package is not installed")

# Each rank writes a file: several calls of each kind, and what they gave. Lines of ranks may run into one another.
PROGRAM = """
import json, os, pathlib
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import tensorflow as tf
from whale_tf.run import communicator, ops

rank, size = communicator.start_world()
assert communicator.start_world() == (rank, size) == communicator.find_world()
communicator.set_timeout(30)
x = tf.range(size * 3, dtype=tf.float32) + 100.0 * rank
found = {"rank": rank, "size": size}
found["eager"] = ops.all_reduce([x, tf.constant(rank)])
found["again"] = ops.all_reduce(x, "max")

@tf.function
def step(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        parts = ops.reduce_scatter(x)
        whole = ops.all_gather(parts * (rank + 1.0))
        moved = ops.all_to_all(x)
        first = ops.broadcast({"a": x, "b": tf.cast(x, tf.uint8)}, root=1)
        loss = tf.reduce_sum(whole) + tf.reduce_sum(moved * (rank + 1.0)) + 2.0 * tf.reduce_sum(first["a"])
    return {"whole": whole, "moved": moved, "first": first["b"], "gradient": tape.gradient(loss, x)}

found.update(step(x))
found["large"] = ops.all_reduce(tf.fill([1 << 20], rank + 1.0), "mean")[::1 << 18]
words = tf.constant([["", "two"], ["three" * 5_000, "4"]])
if rank == 0:
    ops.send([x, tf.constant([1, 2], tf.int16), words], 1)
elif rank == 1:
    specs = [tf.TensorSpec([None], tf.float32), tf.TensorSpec([2], tf.int16), tf.TensorSpec([None, 2], tf.string)]
    *found["received"], received = ops.receive(0, specs)
    assert received.shape == words.shape and bool(tf.reduce_all(received == words))
ops.barrier()
found = tf.nest.map_structure(lambda value: np.asarray(value).tolist(), found)
pathlib.Path(__file__).with_name(f"{rank}.json").write_text(json.dumps(found))
communicator.stop_world()
"""


def run_ranks(program: str, ranks: int, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(program)
    command = [str(MPIEXEC), "-n", str(ranks), sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@needs_mpi
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_processes_are_ranks(size: int, tmp_path: Path) -> None:
    done = run_ranks(PROGRAM, size, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]
    assert [one["rank"] for one in found] == list(range(size))
    elements = range(3 * size)
    triangle = size * (size - 1) // 2
    total = [size * k + 100.0 * triangle for k in elements]
    for rank, one in enumerate(found):
        assert one["eager"] == [total, triangle]
        assert one["again"] == [k + 100.0 * (size - 1) for k in elements]
        assert one["whole"] == [total[k] * (k // 3 + 1) for k in elements]
        assert one["moved"] == [3.0 * rank + k % 3 + 100.0 * (k // 3) for k in elements]
        assert one["first"] == [(k + 100) % 256 for k in elements]
        assert one["large"] == [(size + 1) / 2] * 4
        # Of whole: k // 3 + 1 for each rank's loss. Of moved: the receiver's factor. Of first: the root's alone.
        root = 2.0 * size * (rank == 1)
        assert one["gradient"] == [size * (k // 3 + 1.0) + (k // 3 + 1.0) + root for k in elements]
    assert found[1]["received"] == [[float(k) for k in elements], [1, 2]]


@needs_mpi
def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    done = run_ranks(
        """
import os, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
from whale_tf.run import communicator, ops

rank, size = communicator.start_world()
ops.barrier()
communicator.set_timeout(1)
if rank == 0:
    try:
        ops.all_reduce(tf.ones([2]))
    except tf.errors.DeadlineExceededError as error:
        print("MISSED " + str(error), flush=True)
else:
    time.sleep(4)
communicator.stop_world()
""",
        2,
        tmp_path,
    )
    assert "MISSED" in done.stdout, done.stderr[-3000:]
    assert re.search(r"MISSED .*all-reduce .* waited 1 s for rank 1", done.stdout), done.stdout


def test_mpi_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / communicator.MPI
    library.touch()
    monkeypatch.setenv(communicator.MPI_VARIABLE, str(library))
    assert communicator.find_mpi() == library.resolve()


def test_mpi_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(communicator.MPI_VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(DeviceError) as caught:
        communicator.start_world()
    assert str(caught.value) == (
        "MPI, which carries data between processes, was not found.\n"
        f"  {tmp_path / 'none.so'} does not exist\n"
        "  Run `pip install whale_tf[mpi]`, or set WHALE_TF_MPI to the path of libmpi_abi.so.1."
    )


def test_mpi_that_is_no_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / communicator.MPI
    library.write_text("not a library")
    monkeypatch.setenv(communicator.MPI_VARIABLE, str(library))
    with pytest.raises(DeviceError, match="the world of processes did not start") as caught:
        communicator.start_world()
    assert str(library.resolve()) in str(caught.value)
    assert communicator.find_world() is None


def test_a_library_that_was_not_built_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(communicator, "LIBRARY", tmp_path / "_kernels.so")
    with pytest.raises(DeviceError) as caught:
        communicator.load.__wrapped__()
    assert str(caught.value) == (
        "the library of native operations has not been built.\n"
        f"  {tmp_path / '_kernels.so'} does not exist\n"
        "  Run `pip install -e .` in the source tree; it needs g++."
    )


def test_a_library_of_another_tensorflow_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "_kernels.so"
    library.write_text("not a library")
    monkeypatch.setattr(communicator, "LIBRARY", library)
    with pytest.raises(DeviceError, match="does not fit this TensorFlow"):
        communicator.load.__wrapped__()


def test_a_timeout_is_more_than_nothing() -> None:
    with pytest.raises(DeviceError) as caught:
        communicator.set_timeout(0)
    assert str(caught.value) == (
        "a timeout is more than 0 seconds.\n  seconds is 0\n  Give a large number of seconds to wait long."
    )
