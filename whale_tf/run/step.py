"""What `whale.function` makes of the user's step."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf

from whale_tf.errors import BatchError, CaptureError, PlanError
from whale_tf.plan.grids import Grids
from whale_tf.plan.plan import Plan
from whale_tf.plan.strategy import Strategy
from whale_tf.run.compiled import Compiled
from whale_tf.run.feed import Fed, digest, ranges_of, take_part
from whale_tf.run.graph_file import save_graph
from whale_tf.run.lockstep import Lockstep
from whale_tf.run.processes import World
from whale_tf.run.retracing import Retracing
from whale_tf.run.signature import Arguments, take_apart, written_at
from whale_tf.run.timeline import Timeline, kept, measure
from whale_tf.run.verification import VERIFIED, Verification, verify


@dataclass(frozen=True)
class Options:
    """What a user says of a step besides its strategy.

    Attributes:
      loss: `mean` or `sum` over the examples, if the user says so: then it is checked.
      whole: names of arguments that are not cut.
      verify_first: whether the first call with inputs of some shapes is verified.
    """

    loss: str | None = None
    whole: tuple[str, ...] = ()
    verify_first: bool = False

    def check(self, function: Callable[..., Any]) -> None:
        """Refuses what is wrong for every call.

        Raises:
          PlanError: the options are not possible.
        """
        if self.loss not in (None, "mean", "sum"):
            raise PlanError(
                "the loss must be a mean or a sum over the examples",
                details=[f"loss is {self.loss!r}"],
                at=[written_at(function)],
                way_out='Use loss="mean" or loss="sum" to have it checked, or leave loss out.',
            )
        parameters = inspect.signature(function).parameters
        unknown = [name for name in self.whole if name not in parameters]
        if unknown:
            raise PlanError(
                f"whole names no argument of '{getattr(function, '__name__', 'step')}': {', '.join(map(str, unknown))}",
                details=[f"its arguments are {', '.join(parameters)}"],
                at=[written_at(function)],
                way_out="Use the names of the step's own arguments.",
            )


class Session(Protocol):
    """What there is to run on, as a step knows it."""

    @property
    def cluster(self) -> Hashable:
        """The devices: others are another plan."""

    @property
    def world(self) -> World | None:
        """The processes of this run; None if this one is alone."""


Compiler = Callable[[Callable[..., Any], Arguments], Compiled]


class Step:
    """The user's step, parallel: called as the function it was made from, with the global batch.

    Args:
      options: what is said of it.
      compilers: makes a compiler, for a method one for each instance.
      session: gives the devices and processes that are now.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: Options,
        compilers: Callable[[], Compiler],
        session: Callable[[], Session],
    ) -> None:
        functools.update_wrapper(self, function)
        self.python_function = function
        self.options = options
        self._compilers, self._session = compilers, session
        self._compiler = compilers()
        self._lockstep = Lockstep(getattr(function, "__name__", "step"), lambda: session().world)
        self._compiled: dict[Hashable, Compiled] = {}
        self._last: Compiled | None = None
        self._batch: tuple[tf.Tensor, ...] = ()
        self._plain: Any = None
        self._lock = threading.RLock()
        self._retracing = Retracing(getattr(function, "__name__", "step"), written_at(function))

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
                f"the step '{self.python_function.__name__}' is called inside a tf.function or another step",
                details=["a step brings its own plan over all devices and cannot be part of another graph"],
                at=[written_at(self.python_function)],
                way_out="Call it from Python, once for each batch.",
            )
        with self._lock:
            arguments = self._arguments(args, kwargs)
            first = self._key(arguments) not in self._compiled
            compiled = self._for(arguments, "call", args)
            if first and self.options.verify_first:
                self._verify_first(compiled, arguments)
            self._lockstep.compare(compiled.parts.variables)
            self._batch = arguments.tensors
            return compiled(arguments.tensors)

    def feed(self, dataset: Iterable[Any]) -> Iterator[Fed]:
        """Cuts global batches to what this process's devices need: `for batch in step.feed(dataset): step(batch)`.

        Every process iterates over the same dataset, whose elements are global batches, in the same order; an element
        that is a tuple gives the step's arguments in order, any other is its only argument. Batches that differ
        between processes end the run with an error.

        Args:
          dataset: a `tf.data.Dataset`, or anything that gives such elements. What is shuffled needs the same seed in
            all processes: `whale.init()` sees to it, unless the script sets one.
        Raises:
          WhaleError: as a call with this batch.
        """
        for element in dataset:
            with self._lock:
                args = element if isinstance(element, tuple) else (element,)
                arguments = self._arguments(args, {}).to_feed()
                compiled = self._for(arguments, "feed")
            yield take_part(arguments, compiled.plan, compiled.rank)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A method of the instance, with plans of its own."""
        if instance is None:
            return self
        name = f"_whale_step_{self.python_function.__qualname__}"  # a class and its parent may both have one
        bound = instance.__dict__.get(name)
        if bound is None:
            method = self.python_function.__get__(instance, owner)
            bound = Step(method, self.options, self._compilers, self._session)
            instance.__dict__[name] = bound
        return bound

    def _key(self, arguments: Arguments) -> Hashable:
        """Equal for calls that one plan serves: of the same shapes, on the same devices."""
        return arguments.key, self._session().cluster

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        if len(args) == 1 and isinstance(args[0], Fed) and not kwargs:
            return args[0].arguments
        return take_apart(self.python_function, args, kwargs, self.options.whole)

    def _for(self, arguments: Arguments, what: str, args: tuple[Any, ...] = ()) -> Compiled:
        """The plan for these arguments; other processes are told what it is for, before they might wait for its trace.

        Raises:
          BatchError: the arguments were fed for another step, which cuts a batch otherwise.
        """
        fed, key = args[0] if arguments.fed and args else None, self._key(arguments)

        def details() -> str:
            trace = f"trace {list(self._compiled).index(key)}" if key in self._compiled else "to be traced"
            return (
                f"{trace}, {arguments.examples} examples with digest {fed.digest if fed else digest(arguments.tensors)}"
            )

        self._lockstep.report(what, details)
        if what == "feed" or (what == "call" and not arguments.fed):
            self._retracing.count(arguments, new=key not in self._compiled)
        if key not in self._compiled:
            self._compiled[key] = self._compiler(self.python_function, arguments)
        self._last = self._compiled[key]
        if fed is not None and fed.ranges != ranges_of(self._last.plan):
            raise BatchError(
                f"the batch was fed for another step than '{self.python_function.__name__}'",
                details=[f"processes have the examples {fed.ranges}, and it needs {ranges_of(self._last.plan)}"],
                at=[written_at(self.python_function)],
                way_out="Take it from the feed of the step that is called with it.",
            )
        return self._last

    @property
    def compiled(self) -> Compiled:
        """What was last called, prepared, fed or measured; what was verified, if that came first.

        Raises:
          PlanError: nothing was.
        """
        if self._last is None:
            raise PlanError(
                f"the step '{self.python_function.__name__}' has no plan yet",
                details=["a plan is made at the first call, from the shapes of its inputs"],
                at=[written_at(self.python_function)],
                way_out="Call the step, or plan it without running: step.prepare(*inputs).",
            )
        return self._last

    def prepare(self, *args: Any, **kwargs: Any) -> Plan:
        """Traces and plans for these inputs without running; the next call with such inputs starts at once."""
        with self._lock:
            arguments = self._arguments(args, kwargs)
            self._batch = arguments.tensors
            return self._for(arguments, "plan", args).plan

    def gather(self) -> None:
        """Brings the step's variables up to date in every process: to save, export or evaluate them there.

        Where stages are in several processes, a trained variable and its slots are kept up to date where they are used;
        elsewhere reading one is an error. After this they can be read everywhere, until the next call. Every process
        must call it. Within one process there is nothing to do.

        Raises:
          RunError: another process did not come.
        """
        with self._lock:
            self._lockstep.report("gather", lambda: "of its variables")
            for compiled in self._compiled.values():
                compiled.gather()

    def timeline(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Timeline:
        """Runs one step, measured, and writes when each device did what; the variables stay as they are.

        Of several processes all call it, and the first writes the rows of all.

        Args:
          path: a file that Perfetto (ui.perfetto.dev) and Chrome open.
          args, kwargs: the global batch; without any, that of the last call.
        Raises:
          PlanError: there is no batch, since the step was not called.
        """
        with self._lock:
            if args or kwargs:
                arguments = self._arguments(args, kwargs)
                self._last, self._batch = self._for(arguments, "timeline", args), arguments.tensors
            else:
                self._lockstep.report("timeline", lambda: "of its last call, the same batch")
            compiled, batch = self.compiled, self._batch
            compiled.gather()  # what is away cannot be kept
            with kept(compiled.parts.variables.values()):
                timeline = measure(compiled, batch)
        if compiled.rank == 0:
            timeline.save(path)
        return timeline

    def save_graph(self, path: str | os.PathLike[str]) -> None:
        """Writes what runs for TensorBoard's graph page, with device names, into the folder `path`."""
        save_graph(self.compiled, path)

    def verify(self, *args: Any, steps: int = 1, precision: str | None = None, **kwargs: Any) -> Verification:
        """Runs the plan and the plain one-device `tf.function` from the same state on the same batch, and compares
        every number.

        The variables stay as they are. What is printed or summarized is so twice, and stateful random operations draw
        on.

        A variable whose true gradient is zero, as a bias before a normalization, differs all the same with an optimizer
        such as Adam, which makes a step of full size of any gradient. The result names such variables as `suspects`:
        where they differ, the gradients of both are rounding. In float64 they agree.

        Args:
          args, kwargs: the global batch, as in a call.
          steps: how many steps each runs.
          precision: `float64` to run both with float64 in the place of every smaller float. They start from copies of
            the variables. Operations that TensorFlow has not in float64 run as they are, and are named.
        Raises:
          PlanError: the number of steps or the precision is not possible.
        """
        with self._lock:
            arguments = self._arguments(args, kwargs)
            if arguments.fed and self._session().world is not None:
                raise BatchError(
                    "a step is verified with global batches, and this is one process's part",
                    at=[written_at(self.python_function)],
                    way_out="Give step.verify the element of the dataset itself, in every process.",
                )
            last = self._last
            compiled = self._for(arguments, "verify", args)
            self._last = last or compiled
            if self._plain is None:
                self._plain = tf.function(self.python_function)
            return verify(self._plain, compiled, arguments, steps, precision)

    def _verify_first(self, compiled: Compiled, arguments: Arguments) -> None:
        if self._plain is None:
            self._plain = tf.function(self.python_function)
        found = verify(self._plain, compiled, arguments)
        if found.largest > VERIFIED >= found.unexplained:
            found = verify(self._plain, compiled, arguments, precision="float64")
        if found.unexplained > VERIFIED:
            del self._compiled[self._key(arguments)]
            raise PlanError(
                "the first step is not that of one device",
                details=str(found).splitlines(),
                at=[written_at(self.python_function)],
                way_out='Use batch_norm="global" where a step normalizes over parts of the batch, leave verify_first '
                "out where it draws random numbers without a seed; else report it with what WHALE_TF_DUMP=folder "
                "writes.",
            )

    @property
    def plan(self) -> Plan:
        """The plan of the last call, `prepare`, `feed` or `timeline`."""
        return self.compiled.plan

    @property
    def strategy(self) -> Strategy:
        """What was decided for that plan, with nothing left open: `whale.function(strategy=...)` takes it, or a file
        with what it prints, and makes the same plan again.
        """
        return self.compiled.parts.strategy

    @property
    def schedule(self) -> Grids:
        """The order of actions on each device of a replica, for each pipeline class, in the last call."""
        return self.plan.grids

    @property
    def communication(self) -> Grids:
        """The schedule with what devices send and receive between its actions, and where gradients are reduced.

        It is a schedule too: `schedule=` takes it, with sends at other places if one likes.
        """
        return self.compiled.parts.step.first_communication
