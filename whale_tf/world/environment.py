"""Which process of how many this is, from what its launcher left in the environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whale_tf.errors import DeviceError
from whale_tf.world.address import Address

HUB = "WHALE_TF_HUB"
TIMEOUT = "WHALE_TF_TIMEOUT"
DEFAULT_TIMEOUT_SECONDS = 300.0

# Which variables tell rank and size, and which one says that they are meant. The first row that is there counts:
# a launcher within another's allocation (mpiexec inside a Slurm job) leaves both, and the inner one knows.
SOURCES = (
    ("WHALE_TF_RANK", "WHALE_TF_SIZE", "WHALE_TF_RANK"),
    ("PMI_RANK", "PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"),  # outside a step, SLURM_PROCID is the batch script's own
)
TASKS = ("chief", "master", "worker")  # TF_CONFIG: the order of ranks; evaluators and parameter servers do not train


@dataclass(frozen=True)
class Environment:
    """Prints as `rank 2 of 4 (PMI_RANK, PMI_SIZE)`."""

    rank: int
    size: int
    source: str

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} ({self.source})"


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Rank and size; one process alone where nothing says otherwise.

    Raises:
      DeviceError: what is there is malformed, incomplete or contradicts itself.
    """
    for rank, size, sign in SOURCES:
        if sign not in environ or (sign == "SLURM_STEP_ID" and rank not in environ):
            continue
        if rank == "OMPI_COMM_WORLD_RANK" and environ.get(rank, environ[sign]) != environ[sign]:
            raise _refusal([rank, sign], environ, "the same number in both")
        return _checked(rank, size, environ)
    if "TF_CONFIG" in environ:
        return _from_tf_config(environ["TF_CONFIG"])
    return Environment(0, 1, "alone")


def read_address(environ: Mapping[str, str]) -> Address | None:
    """Where the hub of `whale run` listens; None where the run was started by something else."""
    return Address.parse(environ[HUB]) if HUB in environ else None


def read_timeout(environ: Mapping[str, str]) -> float:
    """Seconds that a rank waits for another: `whale run --timeout`, or the variable itself."""
    text = environ.get(TIMEOUT, str(DEFAULT_TIMEOUT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise _refusal([TIMEOUT], environ, "a number of seconds above 0")
    return seconds


def _checked(rank: str, size: str, environ: Mapping[str, str]) -> Environment:
    try:
        found = Environment(int(environ[rank]), int(environ[size]), f"{rank}, {size}")
    except (KeyError, ValueError):
        raise _refusal([rank, size], environ, "two whole numbers") from None
    if not 0 <= found.rank < found.size:
        raise _refusal([rank, size], environ, "a rank from 0 to one below the size")
    return found


def _from_tf_config(text: str) -> Environment:
    try:
        config: Any = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        counts = {kind: len(cluster[kind]) for kind in TASKS if kind in cluster}
        kind, index = task.get("type"), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError):
        expected = 'JSON like {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}'
        raise _refusal(["TF_CONFIG"], {"TF_CONFIG": text}, expected) from None
    if not counts and not task:
        return Environment(0, 1, "TF_CONFIG")
    if kind not in counts or not 0 <= index < counts[kind]:
        raise _refusal(["TF_CONFIG"], {"TF_CONFIG": text}, "a task that is a chief or worker of its cluster")
    before = TASKS[: TASKS.index(kind)]
    return Environment(sum(counts.get(name, 0) for name in before) + index, sum(counts.values()), "TF_CONFIG")


def _refusal(names: list[str], environ: Mapping[str, str], expected: str) -> DeviceError:
    return DeviceError(
        f"{' and '.join(names)} do{'' if len(names) > 1 else 'es'} not say which process this is"
        if names != [TIMEOUT]
        else f"{TIMEOUT} is no time",
        details=[
            *(f"{name} is {environ[name]!r}" if name in environ else f"{name} is not set" for name in names),
            f"expected {expected}",
        ],
        way_out=f"Start the processes with `whale run`, or unset {' and '.join(names)}.",
    )
