"""The library of kernels/, the world of processes that it speaks for, and who calls together.

    start_world()      joins the other processes through MPI: once, on every rank
    find_world()       rank and size, if that was done
    set_timeout(s)     how long a call waits for ranks that have not come
    abort_world(why)   ends all calls of this process, now and from here on
    stop_world()       leaves
    make_communicator(ranks, world)    ranks that call together, of that world or of one in this process's memory

The library is loaded by the first of these calls, once. What state there is lives in it, not here.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf

from whale_tf.errors import DeviceError

LIBRARY = Path(__file__).resolve().parent.parent / "_kernels.so"
MPI = "libmpi_abi.so.1"  # the MPI 5 standard's own binary interface
MPI_VARIABLE = "WHALE_TF_MPI"
PROCESSES = "processes"
NOT_NUMBERED = -1
_ERROR_BYTES = 4096
_INVALID_ARGUMENT = 1  # of the codes of kernels/communicator/status.h: the thread level
_START_ORDER = (
    "Call whale.init() before the script starts MPI, or start MPI with MPI_THREAD_MULTIPLE, as mpi4py does "
    "unless mpi4py.rc says otherwise."
)
_START_COMMAND = "Start the script with `whale run -n 2 script.py` or `mpiexec -n 2 python script.py`."


@dataclass(frozen=True)
class Communicator:
    """Ranks of a world that call together.

    Attributes:
      world: PROCESSES, or the name of a world in this process's memory.
      ranks: of the members, in the order of results.
      handle: this process's own number for it.
    """

    world: str
    ranks: tuple[int, ...]
    handle: int

    @property
    def size(self) -> int:
        """How many members there are."""
        return len(self.ranks)

    def place(self, member: Any, number: Any = NOT_NUMBERED) -> tf.Tensor:
        """`[handle, member, number]`, int64: who calls, as an argument of a function that serves all members.

        Args:
          member: the caller's place among the ranks, from 0 on; an int or an integer scalar.
          number: of the calls; an int or an integer scalar, 0 or more. Members' calls of one label and number meet,
            whatever order they are made in and however the functions around them are run. Numbers are few: each that
            was used is remembered. Without one, calls meet step by step and by the iterations of the loops around them.
        """
        parts = [tf.cast(each, tf.int64) if tf.is_tensor(each) else each for each in (self.handle, member, number)]
        return tf.convert_to_tensor(parts, tf.int64)


def make_communicator(ranks: Sequence[int] | None = None, world: str = PROCESSES) -> Communicator:
    """The communicator of some ranks: of all processes where none are named; the same for the same ranks.

    Args:
      world: PROCESSES, or any other name for a world of this process's memory, whose ranks are devices or threads.
    Raises:
      DeviceError: ranks that do not exist or are named twice; no world of processes was started.
    """
    found = find_world() if world == PROCESSES else None
    if world == PROCESSES and found is None:
        raise DeviceError(
            "the world of processes has not been started",
            details=["an operation over all processes was called"],
            way_out="Call whale.init() first, or give world=, rank= and ranks= for devices of this process.",
        )
    members = tuple(range(found[1]) if found is not None and ranks is None else ranks or ())
    message = ctypes.create_string_buffer(_ERROR_BYTES)
    given = (ctypes.c_int * len(members))(*members)
    handle = _functions().whale_make_communicator(world.encode(), given, len(members), message, _ERROR_BYTES)
    if handle < 0:
        raise DeviceError(
            "these ranks cannot call together",
            details=[message.value.decode(errors="replace")],
            way_out="Name ranks of the world, each once.",
        )
    return Communicator(world, members, handle)


@functools.cache
def load() -> Any:
    """TensorFlow's module of generated functions, one for each operation; registers the operations.

    Raises:
      DeviceError: the library was not built, or was built with another TensorFlow.
    """
    if not LIBRARY.exists():
        raise DeviceError(
            "the library of native operations has not been built",
            details=[f"{LIBRARY} does not exist"],
            way_out="Run `pip install -e .` in the source tree; it needs g++.",
        )
    try:
        return tf.load_op_library(str(LIBRARY))
    except (tf.errors.NotFoundError, OSError) as error:
        raise DeviceError(
            "the library of native operations does not fit this TensorFlow",
            details=[f"TensorFlow is {tf.__version__}", str(error).split("\n")[0]],
            way_out="Run `pip install -e .` in the source tree with this TensorFlow installed.",
        ) from error


def start_world() -> tuple[int, int]:
    """Joins the world of processes. Every process that was started together must call it.

    Returns:
      rank and size; the same again when called again.
    Raises:
      DeviceError: MPI is not installed, or does not start.
    """
    path = find_mpi()
    rank, size = ctypes.c_int(), ctypes.c_int()
    message = ctypes.create_string_buffer(_ERROR_BYTES)
    references = ctypes.byref(rank), ctypes.byref(size)
    code = _functions().whale_start_world(str(path).encode(), *references, message, _ERROR_BYTES)
    if code != 0:
        raise DeviceError(
            "the world of processes did not start",
            details=[message.value.decode(errors="replace"), f"MPI is {path}"],
            way_out=_START_ORDER if code == _INVALID_ARGUMENT else _START_COMMAND,
        )
    return rank.value, size.value


def find_world() -> tuple[int, int] | None:
    """Rank and size, or None where no world of processes was started."""
    rank, size = ctypes.c_int(), ctypes.c_int()
    found = _functions().whale_find_world(ctypes.byref(rank), ctypes.byref(size))
    return (rank.value, size.value) if found else None


def set_timeout(seconds: float) -> None:
    """A call that waits so long for other ranks fails, and names them. Also holds for calls in flight.

    Raises:
      DeviceError: `seconds` is not more than 0.
    """
    if not seconds > 0:
        raise DeviceError(
            "a timeout is more than 0 seconds",
            details=[f"seconds is {seconds!r}"],
            way_out="Give a large number of seconds to wait long.",
        )
    _functions().whale_set_timeout(float(seconds))


def abort_world(message: str) -> None:
    """Ends every call between processes, those in flight and those to come, with this message."""
    _functions().whale_abort_world(message.encode())


def stop_world() -> None:
    """Leaves the world of processes, in bounded time. Nothing where none was started."""
    _functions().whale_stop_world()


def find_mpi() -> Path:
    """The MPI library: WHALE_TF_MPI, else that of the installed `mpich`, else one in the environment's lib folder.

    Raises:
      DeviceError: there is none.
    """
    named = os.environ.get(MPI_VARIABLE)
    places = [Path(named)] if named else [*_files_of_mpich(), Path(sys.prefix) / "lib" / MPI]
    for place in places:
        if place.is_file():
            return place.resolve()
    raise DeviceError(
        "MPI, which carries data between processes, was not found",
        details=[f"{place} does not exist" for place in places],
        way_out=f"Run `pip install whale_tf[mpi]`, or set {MPI_VARIABLE} to the path of {MPI}.",
    )


def _files_of_mpich() -> list[Path]:
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == MPI]


@functools.cache
def _functions() -> ctypes.CDLL:
    """The same library by its C functions; TensorFlow loads it first, since it holds the symbols it needs."""
    load()
    functions = ctypes.CDLL(str(LIBRARY))
    integer, text = ctypes.POINTER(ctypes.c_int), ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "whale_start_world": (ctypes.c_int, [text, integer, integer, text, ctypes.c_int64]),
        "whale_make_communicator": (ctypes.c_int64, [text, integer, ctypes.c_int, text, ctypes.c_int64]),
        "whale_find_world": (ctypes.c_int, [integer, integer]),
        "whale_set_timeout": (None, [ctypes.c_double]),
        "whale_abort_world": (None, [text]),
        "whale_stop_world": (None, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions
