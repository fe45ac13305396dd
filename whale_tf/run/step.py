"""What `whale.function` makes of the user's step."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from whale_tf.errors import CaptureError, PlanError
from whale_tf.plan.grid import Grid
from whale_tf.plan.plan import Plan
from whale_tf.plan.schedule import make_grid
from whale_tf.run.compiled import Compiled
from whale_tf.run.signature import Arguments, take_apart


@dataclass(frozen=True)
class Options:
    """How a step is to be run.

    Attributes:
      micro_batches: parts that each replica cuts its batch into.
      schedule: the order of the micro-batches' actions.
      loss: `mean` or `sum`: what the loss is over the examples.
      whole: names of arguments that are not cut.
    """

    micro_batches: int = 1
    schedule: str = "1f1b"
    loss: str = "mean"
    whole: tuple[str, ...] = ()

    def check(self, function: Callable[..., Any]) -> None:
        """Refuses what is wrong for every call.

        Raises:
          PlanError, ScheduleError: the options are not possible.
        """
        if isinstance(self.micro_batches, bool) or not isinstance(self.micro_batches, int) or self.micro_batches < 1:
            raise PlanError(
                "micro_batches must be a whole number from 1 on",
                details=[f"micro_batches is {self.micro_batches!r}"],
                way_out="Use micro_batches=1 to take each replica's part of the batch at once.",
            )
        if self.loss not in ("mean", "sum"):
            raise PlanError(
                f"the loss is neither a mean nor a sum: {self.loss!r}",
                way_out='Use loss="mean" or loss="sum": what the loss is over the examples.',
            )
        make_grid(self.schedule, 1, 1)
        parameters = inspect.signature(function).parameters
        unknown = [name for name in self.whole if name not in parameters]
        if unknown:
            raise PlanError(
                f"whole names no argument of '{getattr(function, '__name__', 'step')}': {', '.join(unknown)}",
                details=[f"its arguments are {', '.join(parameters)}"],
                way_out="Use the names of the step's own arguments.",
            )


Compiler = Callable[[Callable[..., Any], Arguments, Options], Compiled]


class Step:
    """The user's step, parallel: called as the function it was made from, with the global batch."""

    def __init__(self, function: Callable[..., Any], options: Options, compiler: Compiler) -> None:
        functools.update_wrapper(self, function)
        self.python_function = function
        self.options = options
        self._compiler = compiler
        self._compiled: dict[Hashable, Compiled] = {}
        self._last: Compiled | None = None
        self._lock = threading.RLock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs one step.

        Raises:
          WhaleError: the step cannot be traced, planned or cut; nothing has run then.
          RunError: an operation failed; the variables are as before.
        """
        if tf.config.functions_run_eagerly():
            return self.python_function(*args, **kwargs)
        if not tf.executing_eagerly():
            raise CaptureError(
                f"the step '{self.python_function.__name__}' is called inside a tf.function",
                details=["a step brings its own plan over all devices and cannot be part of another graph"],
                way_out="Call it from Python, once for each batch.",
            )
        with self._lock:
            arguments = self._arguments(args, kwargs)
            compiled = self._for(arguments)
            return compiled(arguments.tensors)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A method of the instance, with plans of its own."""
        if instance is None:
            return self
        name = f"_whale_step_{self.python_function.__name__}"
        bound = instance.__dict__.get(name)
        if bound is None:
            bound = Step(self.python_function.__get__(instance, owner), self.options, self._compiler)
            instance.__dict__[name] = bound
        return bound

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        return take_apart(self.python_function, args, kwargs, self.options.whole)

    def _for(self, arguments: Arguments) -> Compiled:
        if arguments.key not in self._compiled:
            self._compiled[arguments.key] = self._compiler(self.python_function, arguments, self.options)
        self._last = self._compiled[arguments.key]
        return self._last

    @property
    def compiled(self) -> Compiled:
        """What ran last.

        Raises:
          PlanError: nothing has run.
        """
        if self._last is None:
            raise PlanError(
                f"the step '{self.python_function.__name__}' has no plan yet",
                details=["a plan is made at the first call, from the shapes of its inputs"],
                way_out="Call the step, or plan it without running: step.prepare(*inputs).",
            )
        return self._last

    def prepare(self, *args: Any, **kwargs: Any) -> Plan:
        """Traces and plans for these inputs without running; the next call with such inputs starts at once."""
        with self._lock:
            return self._for(self._arguments(args, kwargs)).plan

    @property
    def plan(self) -> Plan:
        """The plan of the last call."""
        return self.compiled.plan

    @property
    def schedule(self) -> Grid:
        """The order of actions on each device of a replica, in the last call."""
        return self.plan.grid
