"""Trains one case on one device and under a layout, and compares every number.

    case    what is trained: a function that builds model, optimizer, step and batches, the same ones each time
    layout  how: replicas, stages, micro-batches, schedule, and how many examples a batch has

The same step function is the reference: scopes do nothing under `tf.function`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import whale_tf as whale
from whale_tf.run.step import Step

SEED = 7
TOLERANCE = 1e-5  # of a tensor's largest number: what adding float32 numbers in another order changes in three steps
TINY = 1e-8  # below this a number is rounding only: the gradient of a bias that softmax ignores

Numbers = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Layout:
    """How a step is spread: prints as `r2-s4-m4-gpipe`.

    Attributes:
      shares: relative parts of the batch, one per replica; equal ones if empty.
      devices: how many there are; 0 is what the stages of each replica take.
      places: for each replica the device of each stage; in the order of the devices if empty.
      examples: the size of the global batch.
      split: over how many devices the operators of each stage are cut.
    """

    replicas: int = 1
    stages: int = 1
    micro_batches: int = 1
    schedule: str = "1f1b"
    shares: tuple[float, ...] = ()
    devices: int = 0
    places: tuple[tuple[int, ...], ...] = ()
    examples: int = 16
    split: int = 1

    def __str__(self) -> str:
        text = f"r{self.replicas}-s{self.stages}-m{self.micro_batches}-{self.schedule}"
        text += f"-shares{'_'.join(f'{share:g}' for share in self.shares)}" if self.shares else ""
        text += f"-on{self.devices}" if self.devices else ""
        text += f"-on{'_'.join(''.join(map(str, row)) for row in self.places)}" if self.places else ""
        text += f"-split{self.split}" if self.split > 1 else ""
        return text + (f"-of{self.examples}" if self.examples != 16 else "")

    @property
    def count(self) -> int:
        """How many devices there are."""
        return self.devices or len({*chain.from_iterable(self.places)}) or self.replicas * self.stages * self.split

    @property
    def strategy(self) -> whale.Strategy:
        """What the scopes do not say; a strategy with devices says the shares too."""
        shares = self.shares if self.places else ()
        return whale.Strategy(
            shares=shares, devices=self.places, micro_batches=self.micro_batches, schedule=self.schedule
        )


class Nested(AbstractContextManager[Any]):
    """Scopes that are opened one in another, each time anew."""

    def __init__(self, scopes: Sequence[AbstractContextManager[Any]]) -> None:
        self.scopes = scopes
        self.opened: list[ExitStack] = []

    def __enter__(self) -> None:
        self.opened.append(ExitStack())
        for scope in self.scopes:
            self.opened[-1].enter_context(scope)

    def __exit__(self, *raised: Any) -> None:
        self.opened.pop().__exit__(*raised)


class Scopes:
    """The scopes that a case opens for a layout; where the layout has no replicas or stages, none are opened."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.examples = layout.examples
        self.stages = layout.stages
        self.replica: AbstractContextManager[Any] = nullcontext()
        if layout.replicas > 1:
            self.replica = whale.replica(layout.replicas, shares=layout.shares or None)
        if layout.split > 1 and layout.stages == 1:
            self.replica = Nested([self.replica, whale.split()])

    def stage(self, index: int) -> AbstractContextManager[Any]:
        """The stage of this number; stages are numbered as they are first opened, so a case opens them in order."""
        if self.stages == 1:
            return nullcontext()
        if self.layout.split == 1:
            return whale.stage(name=f"part {index}")
        return Nested([whale.stage(name=f"part {index}", devices=self.layout.split), whale.split()])

    def stage_of(self, block: int, blocks: int = 4) -> AbstractContextManager[Any]:
        """The stage of one of `blocks` blocks that are divided evenly."""
        return self.stage(block * self.stages // blocks)

    def through(
        self, blocks: Sequence[Callable[..., Any]], value: Any, *, first: int = 0, blocks_in_all: int = 4
    ) -> Any:
        """Runs blocks one after another, each in its stage; `first` is the number of the first of them."""
        for i, block in enumerate(blocks):
            with self.stage_of(first + i, blocks_in_all):
                value = block(value)
        return value


@dataclass(frozen=True)
class Training:
    """What a case builds.

    Attributes:
      step: takes a batch.
      batches: positional arguments of the step, one tuple per step.
      owners: models, layers, optimizers, metrics and variables whose values are compared.
      keywords: keyword arguments of the step, one mapping per step; none if empty.
    """

    step: Callable[..., Any]
    batches: Sequence[tuple[Any, ...]]
    owners: Sequence[Any]
    keywords: Sequence[Mapping[str, Any]] = ()

    def calls(self) -> Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        """Positional and keyword arguments of each step."""
        return zip(self.batches, self.keywords or [{}] * len(self.batches), strict=True)


@dataclass(frozen=True)
class Case:
    """One kind of training.

    Attributes:
      build: gives the training of this case, fresh and always the same, with the scopes it is given.
      loss, whole, accept: as in `whale.function`.
      tolerance: of a tensor's largest number.
      allows: which layouts it makes sense for.
      layouts: those it is run at, in the place of a choice from the general ones.
    """

    build: Callable[[Scopes], Training]
    loss: str | None = None
    whole: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    tolerance: float = TOLERANCE
    allows: Callable[[Layout], bool] = field(default=lambda layout: True)
    layouts: tuple[Layout, ...] = ()
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.build.__name__


def check(case: Case, layout: Layout) -> tuple[Any, Training]:
    """Trains under the layout and on one device, and fails where a number differs; gives the step and its training."""
    want = reference(case, layout.examples)
    step, training = parallel(case, layout)
    got = numbers(training, step)
    wrong = differences(got, want, case.tolerance)
    assert not wrong, f"{case} at {layout}: {len(wrong)} of {len(want)} differ\n  " + "\n  ".join(wrong)
    return step, training


def parallel(case: Case, layout: Layout, **options: Any) -> tuple[Any, Training]:
    """The step under the layout, and its fresh training; `options` are those of `whale.function`."""
    whale.init(devices=layout.count)
    training = fresh(case, layout)
    decorate = whale.function(
        strategy=layout.strategy,
        loss=case.loss,
        whole=case.whole,
        accept=case.accept,
        **options,
    )
    return decorate(training.step), training


@functools.cache
def reference(case: Case, examples: int) -> Numbers:
    """The numbers of the plain one-device training."""
    training = fresh(case, Layout(examples=examples))
    return numbers(training, tf.function(training.step))


def fresh(case: Case, layout: Layout) -> Training:
    """The case's training, from the same random numbers each time."""
    keras.utils.set_random_seed(SEED)
    return case.build(Scopes(layout))


def numbers(training: Training, step: Callable[..., Any]) -> Numbers:
    """Runs all steps; every output of each, and every variable at the end."""
    found: Numbers = {}
    for k, (args, keywords) in enumerate(training.calls()):
        outputs = step(*args, **keywords)
        found[f"structure of step {k}"] = np.array(structure(outputs))
        for i, value in enumerate(tf.nest.flatten(outputs)):
            found[f"step {k} output {i}"] = array(value)
    if isinstance(step, Step):
        step.gather()  # of several processes each keeps its own stages' variables
    for i, owner in enumerate(training.owners):
        for j, variable in enumerate(getattr(owner, "variables", [owner])):
            name = re.sub(r"_\d+", "", variable.name)  # Keras counts the layers of a program
            found[f"{type(owner).__name__} {i} variable {j} {name}"] = array(variable)
    return found


def structure(outputs: Any) -> str:
    """The nesting of outputs with a dot for each leaf; a leaf that is None stays None."""
    return repr(tf.nest.map_structure(lambda leaf: None if leaf is None else ".", outputs))


def array(value: Any) -> np.ndarray[Any, Any]:
    """A tensor or variable as numbers; half precision as float32."""
    if isinstance(value, keras.Variable):
        value = value.value
    found = np.asarray(value)
    return found.astype(np.float32) if found.dtype.name in ("bfloat16", "float16") else found


def differences(got: Numbers, want: Numbers, tolerance: float) -> list[str]:
    """One line for each number that is not the same."""
    lines = [f"{name}: there only on one side" for name in got.keys() ^ want.keys()]
    for name in got.keys() & want.keys():
        difference = different(got[name], want[name], tolerance)
        if difference:
            lines.append(f"{name} {list(want[name].shape)}: {difference}")
    return sorted(lines)


def different(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], tolerance: float) -> str:
    """How two arrays differ; empty if they do not."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype} {list(got.shape)} in the place of {want.dtype} {list(want.shape)}"
    if want.dtype.kind != "f":
        return "" if np.array_equal(got, want) else f"{got} in the place of {want}"
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return "not finite in other places"
    if not finite.any():
        return ""
    largest, scale = np.abs(got - want)[finite].max(), np.abs(want[finite]).max()
    if largest <= tolerance * scale + TINY:
        return ""
    return f"largest difference {largest:.3g}, largest number {scale:.3g}, relative {largest / max(scale, TINY):.3g}"
