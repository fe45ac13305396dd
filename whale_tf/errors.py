"""Every error a user can cause, in five parts.

    PlanError: cannot split 'head/MatMul' 4 ways.          the rule
      dim 1 of 'head/kernel' [6, 10] has size 10           the numbers
      at train.py:14 in step: logits = tf.matmul(h, w)     the user's line
      in split(4) opened at train.py:13                    the scope's line
      Use split(2) or split(5), or pad the dim to 12.      the way out

Parts that do not apply are left out; the rule and the way out are always there.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A place in the user's program: prints as `train.py:14 in step: logits = tf.matmul(h, w)`."""

    file: str
    number: int
    function: str = ""
    code: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.number}"
        if self.function:
            place += f" in {self.function}"
        code = self.code or linecache.getline(self.file, self.number).strip()
        return f"{place}: {code}" if code else place


class WhaleError(Exception):
    """Base of all errors of whale_tf; the kinds below say which phase refused.

    Args:
      rule: the rule that was broken, one sentence without the final period.
      details: lines with the numbers, one per offender.
      at: the user's lines that are concerned.
      scope: the scope that asked for it, as `stage 'a' opened at train.py:3`.
      way_out: what to do instead, one sentence or more.
    """

    ag_pass_through = True  # AutoGraph, tried with TensorFlow 2.21, wraps an error without this in one of its own

    def __init__(
        self,
        rule: str,
        *,
        details: Sequence[str] = (),
        at: Sequence[Line | str] = (),
        scope: Sequence[str] | str = (),
        way_out: str = "",
    ) -> None:
        self.rule = rule
        self.details = tuple(details)
        self.at = tuple(at)
        self.scope = (scope,) if isinstance(scope, str) else tuple(scope)
        self.way_out = way_out
        lines = [rule.rstrip(".") + "."]
        lines += [f"  {detail}" for detail in self.details]
        lines += [f"  at {line}" for line in self.at]
        lines += [f"  in {opened}" for opened in self.scope]
        if way_out:
            lines.append(f"  {way_out}")
        # Not super(): a kind may also be a tf.errors class, whose __init__ takes other arguments.
        Exception.__init__(self, "\n".join(lines))


class ScopeError(WhaleError):
    """Scopes that do not nest, repeat or close as they must."""


class DeviceError(WhaleError):
    """Devices that do not exist, do not divide, or were fixed before `init`."""


class BatchError(WhaleError):
    """Inputs that cannot be cut into replicas and micro-batches."""


class CaptureError(WhaleError):
    """A step that cannot be traced into one flat graph."""


class VariableError(WhaleError):
    """Variables made, written or left in a way the plan cannot keep consistent."""


class PlanError(WhaleError):
    """A program that cannot run as annotated."""


class ScheduleError(WhaleError):
    """A schedule that is unknown, malformed or never ends."""


class RunError(WhaleError):
    """A failure while the plan ran.

    It is raised as a class that is also the `tf.errors` type of the failure, so both kinds of `except` catch it.
    """


class InternalError(WhaleError):
    """A pass broke the program: a fault of whale_tf, with the pass and the dump to look at."""


class ValueCheckError(InternalError):
    """A value that the plan computed is not one device's, found with WHALE_TF_CHECK=values: a fault of whale_tf."""
