"""Measures contenders in turn, A B A B ..., and prints medians and ratios, as Markdown that a README can take.

A busy machine slows all contenders of one round alike, so the spread of a ratio is that of the rounds' own ratios.
Where their median is far from the ratio of medians, the machine was too busy to tell.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.model import Size

ADDRESS, GROUP = "BENCHMARK_ADDRESS", "BENCHMARK_GROUP"  # how a process finds its Groups, and which one it is of
START_SECONDS = 180.0  # until all processes of all groups are ready; also the limit of one turn
END_SECONDS = 20.0  # that processes have to leave by themselves
SMALL = Size(width=32, length=16, vocabulary=64)


@dataclass(frozen=True)
class Unit:
    """What a number is printed in: `scale` of them are one of what was measured."""

    name: str
    scale: float
    digits: int


MICROSECONDS = Unit("us", 1e6, 0)
MILLISECONDS = Unit("ms", 1e3, 1)
SECONDS = Unit("s", 1.0, 2)
MEBIBYTES = Unit("MiB", 2.0**-20, 1)


@dataclass(frozen=True)
class Measured:
    """What one contender took: the median of each round, in seconds or bytes."""

    name: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over all rounds."""
        return median(self.rounds)


@dataclass(frozen=True)
class Claim:
    """A bound on the ratio of two contenders.

    Attributes:
      above, below: names of the contenders whose medians are divided.
      at_most, at_least: the bounds; None is none. Without any, the ratio is only printed.
    """

    above: str
    below: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def bound(self) -> str:
        """Prints as `<= 1.03`."""
        bounds = (("<=", self.at_most), (">=", self.at_least))
        return " and ".join(f"{sign} {value:g}" for sign, value in bounds if value is not None)

    def holds(self, ratio: float) -> bool:
        """Whether the ratio is within the bounds."""
        return (self.at_most is None or ratio <= self.at_most) and (self.at_least is None or ratio >= self.at_least)


def arguments(description: str, *, rounds: int, steps: int) -> argparse.ArgumentParser:
    """The options every benchmark has: `--rounds`, `--steps`, `--small`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="times that each contender has its turn")
    parser.add_argument("--steps", type=int, default=steps, help="measurements in one turn")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that the script runs")
    return parser


def warm_up(steps: Mapping[str, Callable[[], tf.Tensor]], *, times: int = 3, tolerance: float = 1e-3) -> None:
    """Runs each contender a few steps, and makes sure that all compute the same.

    Args:
      steps: each gives its loss; all start from the same weights and see the same batch.
      times: steps of each; the first ones trace.
      tolerance: relative; float sums in another order drift apart a little with each step of Adam.
    """
    check_losses({name: [float(step()) for _ in range(times)] for name, step in steps.items()}, tolerance=tolerance)


def check_losses(losses: Mapping[str, Sequence[float]], *, tolerance: float = 1e-3) -> None:
    """Makes sure that contenders compute the same.

    Raises:
      ValueError: the losses differ, so times would compare different work.
    """
    first, *others = losses.values()
    for other in others:
        if any(abs(a - b) > tolerance * abs(a) for a, b in zip(first, other, strict=True)):
            lines = [f"{name}: {', '.join(f'{loss:.6f}' for loss in run)}" for name, run in losses.items()]
            raise ValueError("the contenders do not compute the same; their losses are\n  " + "\n  ".join(lines))


def timed(step: Callable[[], tf.Tensor | None]) -> Callable[[], float]:
    """Measures the seconds of one step, up to where its loss can be read if it gives one."""

    def seconds() -> float:
        start = time.perf_counter()
        value = step()
        if value is not None:
            value.numpy()
        return time.perf_counter() - start

    return seconds


def alternate(contenders: Mapping[str, Callable[[], float]], *, rounds: int, steps: int) -> list[Measured]:
    """Each contender's measurements, `steps` of one and then of the next, `rounds` times over."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            found[name].append(median(measure() for _ in range(steps)))
    return [Measured(name, tuple(values)) for name, values in found.items()]


def report(title: str, measured: Sequence[Measured], claims: Sequence[Claim], unit: Unit = MILLISECONDS) -> bool:
    """Prints the machine, the medians and the ratios; returns whether all claims hold.

    The spread of a ratio is that of each round's own: lower quartile, median, upper quartile.
    """
    console = Console(width=160)
    console.print(f"\n{title}\n{machine()}\n", markup=False, highlight=False)
    medians = Table(f"contender ({len(measured[0].rounds)} rounds)", "median", "quartiles", box=box.MARKDOWN)
    for one in measured:
        low, high = _quartiles(one.rounds)
        medians.add_row(one.name, _text(one.median, unit), f"{_text(low, unit)} - {_text(high, unit)}")
    console.print(medians)

    ratios = Table("ratio of medians", "", "quartiles of the rounds' ratios", "claim", "", box=box.MARKDOWN)
    by_name = {one.name: one for one in measured}
    hold = True
    for claim in claims:
        above, below = by_name[claim.above], by_name[claim.below]
        ratio = above.median / below.median
        by_round = [a / b for a, b in zip(above.rounds, below.rounds, strict=True)]
        low, high = _quartiles(by_round)
        spread = f"{low:.3f} - {median(by_round):.3f} - {high:.3f}"
        verdict = ("holds" if claim.holds(ratio) else "does not hold") if claim.bound else ""
        ratios.add_row(f"{above.name} / {below.name}", f"{ratio:.3f}", spread, claim.bound, verdict)
        hold = hold and claim.holds(ratio)
    console.print(ratios)
    return hold


def machine() -> str:
    """The machine and its load in one line."""
    cores = len(os.sched_getaffinity(0))
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    processor = found[1] if found else platform.processor() or platform.machine()
    return (
        f"Machine: {cores} cores of {processor}, load {os.getloadavg()[0]:.1f}; "
        f"TensorFlow {tf.__version__}, Python {platform.python_version()}"
    )


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper one, each a value that was measured."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[last // 4], ordered[last - last // 4]


def _text(value: float, unit: Unit) -> str:
    scaled = value * unit.scale
    digits = unit.digits if scaled >= 1 else unit.digits + 2  # of a small number, too, something is left
    return f"{scaled:.{digits}f} {unit.name}"
