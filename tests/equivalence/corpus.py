"""Steps that wrong rules are tried on: random programs and forms, each traced once, however often it is planned.

A trace does not depend on the rules, so a step is planned and run again from the same one.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

import whale_tf as whale
from tests.equivalence.form_cases import FORMS, NARROW, case_of, taken_apart
from tests.equivalence.harness import Layout, Scopes, Training, fresh
from tests.equivalence.operation_subjects import trainings
from tests.equivalence.random_operations import OPERATIONS
from tests.equivalence.test_random_programs import DEPTH, STARTS, TERMS, Program, training_of
from tests.plan.test_rules import CASES
from whale_tf import parallelize
from whale_tf.capture.outside import Outside
from whale_tf.capture.translate import CapturedStep
from whale_tf.errors import InternalError, WhaleError
from whale_tf.ir.sizes import Sizes
from whale_tf.plan.coupling import Coupling, resolve
from whale_tf.plan.states import States

# Parts of unequal size: of equal ones a mean of means is the mean.
LAYOUT = Layout(replicas=2, shares=(1, 2), examples=9)


@dataclass
class Subject:
    """A step that is planned again and again.

    Attributes:
      name: what it is.
      training: the step with its batches.
      step, outside: its trace, and what that takes from outside, once it was traced.
      sized: what it is at every size.
    """

    name: str
    training: Training
    step: CapturedStep | None = None
    outside: Outside | None = None
    sized: Sizes | None = None
    coupling: Coupling | None = None

    def run(self) -> None:
        """Plans the step and runs it once, with its values checked.

        Raises:
          WhaleError: it is refused, or a value is wrong.
        """
        args, keywords = next(iter(self.training.calls()))
        with self._remembered():
            taken_apart(whale.function(self.training.step))(*args, **keywords)

    def states(self) -> States:
        """How its values depend on the batch, by the rules as they are now.

        Raises:
          WhaleError: it is refused.
        """
        assert self.sized is not None and self.coupling is not None  # it has run
        return resolve(self.sized, self.coupling).states

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        """While it lasts, the step is not traced again."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("capture_first", "at_every_size", "resolve"):
                patch.setattr(
                    parallelize, name, functools.partial(getattr(self, f"_{name}"), getattr(parallelize, name))
                )
            yield

    def _capture_first(
        self, real: Callable[..., Any], fn: Any, arguments: Any, outside: Outside, **how: Any
    ) -> CapturedStep:
        if self.step is None:
            self.step, self.outside = real(fn, arguments, outside, **how), outside
        vars(outside).update(vars(self.outside))
        return self.step

    def _at_every_size(self, real: Callable[..., Any], *given: Any, **how: Any) -> Sizes:
        self.sized = self.sized or real(*given, **how)
        return self.sized

    def _resolve(self, real: Callable[..., Any], sized: Sizes, coupling: Coupling) -> Any:
        self.coupling = coupling
        return real(sized, coupling)


def drawn_program(draw: random.Random) -> Program:
    """Up to DEPTH operations on each other; half of the values join the loss, so that most of them reach a gradient."""
    kinds, lines = list(STARTS), []
    for _ in range(draw.randint(2, DEPTH)):
        operation = draw.choice([each for each in OPERATIONS if set(each.takes) <= set(kinds)])
        newest = [[i for i, kind in enumerate(kinds) if kind is taken][-3:] for taken in operation.takes]
        lines.append((operation, tuple(draw.choice(each) for each in newest)))
        kinds.append(operation.gives)
    values = range(len(STARTS), len(kinds))
    losses = tuple((value, draw.choice(sorted(TERMS))) for value in draw.sample(values, len(values) // 2))
    return Program(tuple(lines), losses, (len(kinds) - 1,))


def programs(count: int, seed: int) -> Iterator[Subject]:
    """Random programs."""
    draw = random.Random(seed)
    for number in range(count):
        yield Subject(f"program {number}", training_of(drawn_program(draw), Scopes(LAYOUT)))


def forms(every: int) -> Iterator[Subject]:
    """One in so many of all forms."""
    for form in FORMS[::every]:
        yield Subject(str(form), fresh(case_of(form, NARROW), LAYOUT))


def operations(op: str) -> Iterator[Subject]:
    """Steps of one kind of operation alone, that run."""
    for given in CASES:
        if given.op == op:
            for name, choices in trainings(given):
                yield from next((found for each in choices if (found := running([Subject(name, each)]))), [])


def running(given: Iterable[Subject]) -> list[Subject]:
    """Those that are not refused; each has run, with the rules as they are."""
    found = []
    for subject in given:
        try:
            subject.run()
        except InternalError:
            raise
        except WhaleError:
            continue
        found.append(subject)
    return found
