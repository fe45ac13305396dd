"""Variables that are up to date in other processes only: here, whoever reads one is told so.

    after a step      process 0                      process 1
    w0 of stage 0     up to date                     away: no memory, and reading it is an error
    w1 of stage 1     away                           up to date
    gather            all up to date everywhere, until the next step

A variable that is away has another class, which refuses its handle, and for TensorFlow's C++ a handle of nothing.
Functions that were traced before have the true one, and find a tensor there that fits nothing: no elements in more
dims than operations take. Where a variable is up to date is remembered on it, alike in all processes, since all run the
same steps.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context  # private; tried with 2.21
from tensorflow.python.ops import gen_resource_variable_ops, resource_variable_ops  # private; tried with 2.21

from whale_tf.errors import VariableError
from whale_tf.run.processes import World, share

_HOLDERS = "_whale_holders"  # attributes of a variable: the processes where it is up to date, if not in all,
_REFUSAL = "_whale_refusal"  # the error for who reads it elsewhere,
_HANDLE = "_whale_handle"  # and there its handle
UNLIKE_ANY = (0,) * 9  # a shape; operations on several tensors take up to 8 dims
# While a step is traced, its variables are only named.
_NAMED_ONLY: ContextVar[bool] = ContextVar("named_only", default=False)


@dataclass(frozen=True)
class Holding:
    """Where a program needs its variables, and where it leaves them up to date.

    Attributes:
      step: the name of the user's step.
      variables: by name.
      read_in: for each variable the processes that read it.
      assigned_in: for each variable that the program changes the processes that then have its value.
    """

    step: str
    world: World
    variables: Mapping[str, Any]
    read_in: Mapping[str, frozenset[int]]
    assigned_in: Mapping[str, frozenset[int]]

    def prepare(self) -> None:
        """Brings up to date what this program reads where another one has not left it. All processes call it."""
        missing = []
        for name, readers in self.read_in.items():
            holders = holders_of(self.variables[name])
            if holders is not None and not readers <= holders:
                missing.append(self.variables[name])
        bring_back(self.world, missing)

    def settle(self) -> None:
        """Notes, after the program has run, where each variable is up to date now."""
        for name, holders in self.assigned_in.items():
            variable = self.variables[name]
            if len(holders) == self.world.size:
                _come_back(variable)
            elif holders_of(variable) is not holders or is_away(variable) == (self.world.rank in holders):
                setattr(variable, _HOLDERS, holders)
                if self.world.rank in holders:
                    _make_readable(variable)
                elif not is_away(variable):
                    self._send_away(name, variable)

    def _send_away(self, name: str, variable: Any) -> None:
        """Frees its memory here, and refuses it to Python, and to TensorFlow's C++, which reads operands by itself."""
        gen_resource_variable_ops.assign_variable_op(variable.handle, tf.zeros(UNLIKE_ANY, variable.dtype))
        told = f"'{name}': call {self.step}.gather() in every process before"
        unreadable = gen_resource_variable_ops.var_handle_op(variable.dtype, variable.shape, shared_name=told)
        setattr(variable, _REFUSAL, functools.partial(self._refusal, name))
        vars(variable).update({_HANDLE: variable.handle, "_handle": unreadable})  # private; tried with 2.21
        variable.__class__ = _away_class(type(variable))  # type: ignore[arg-type]  # a class has a hash

    def _refusal(self, name: str) -> VariableError:
        holders = holders_of(self.variables[name]) or frozenset()
        return VariableError(
            f"variable '{name}' is not up to date in process {self.world.rank}",
            details=[f"step '{self.step}' uses it in {_named(holders)} only, and keeps it there"],
            way_out=f"Call {self.step}.gather() in every process before: it brings the step's variables up to date "
            "everywhere.",
        )


def bring_back(world: World, variables: Iterable[Any]) -> None:
    """Brings variables up to date in every process. All processes must call it, with the same ones."""
    missing = [(variable, holders) for variable in variables if (holders := holders_of(variable)) is not None]
    _spread(world, ((variable, min(holders)) for variable, holders in missing))
    for variable, _ in missing:
        _come_back(variable)


def share_variables(world: World, variables: Iterable[Any]) -> None:
    """Gives every process the values of the first one's variables; what a step keeps somewhere stays there."""
    _spread(world, ((variable, 0) for variable in variables if holders_of(variable) is None))


def _spread(world: World, sources: Iterable[tuple[Any, int]]) -> None:
    """Gives every process the values of variables, each with the process that has the one that counts."""
    by_source: dict[tuple[int, tf.DType], list[Any]] = {}
    for variable, source in sources:
        by_source.setdefault((source, variable.dtype), []).append(variable)
    for (source, dtype), members in by_source.items():
        own = [tf.zeros(each.shape, dtype) if is_away(each) else _read(each) for each in members]
        for variable, value in zip(members, share(world, dtype, own, source), strict=True):
            if world.rank != source:
                gen_resource_variable_ops.assign_variable_op(handle_of(variable), value)


@contextlib.contextmanager
def named_only() -> Iterator[None]:
    """While a step is traced: its variables may be away, since what reads them is yet to be planned."""
    token = _NAMED_ONLY.set(True)
    try:
        yield
    finally:
        _NAMED_ONLY.reset(token)


def may_be_away(variable: Any) -> bool:
    """Whether reads of the variable can be refused: TensorFlow's own kind, not a bare handle."""
    return isinstance(variable, resource_variable_ops.ResourceVariable)


def is_away(variable: Any) -> bool:
    """Whether the variable is not up to date in this process."""
    return isinstance(variable, _Away)


def holders_of(variable: Any) -> frozenset[int] | None:
    """The processes where the variable is up to date; None for all."""
    holders: frozenset[int] | None = getattr(variable, _HOLDERS, None)
    return holders


def handle_of(variable: Any) -> Any:
    """The variable's handle, whether it is away or not."""
    return vars(variable)[_HANDLE] if is_away(variable) else variable.handle


def _read(variable: Any) -> tf.Tensor:
    return gen_resource_variable_ops.read_variable_op(handle_of(variable), variable.dtype)


def _come_back(variable: Any) -> None:
    if holders_of(variable) is not None:
        setattr(variable, _HOLDERS, None)
        _make_readable(variable)


def _make_readable(variable: Any) -> None:
    if is_away(variable):
        variable.__class__ = type(variable).__mro__[2]
        vars(variable)["_handle"] = vars(variable).pop(_HANDLE)


def _is_only_named() -> bool:
    """Whether a step is traced, and this is not eager code in the middle of it, as in `tf.init_scope`: that reads."""
    switches = context.context().context_switches.stack
    reads = tf.executing_eagerly() and any(switch.is_building_function for switch in switches)
    return _NAMED_ONLY.get() and not reads


def _named(processes: frozenset[int]) -> str:
    return f"process{'es' * (len(processes) > 1)} {', '.join(map(str, sorted(processes)))}"


class _Away:
    """Mixed into the class of a variable that is away."""

    name: str
    shape: tf.TensorShape
    dtype: tf.DType

    @property
    def handle(self) -> Any:
        """Refused, except to a step's trace."""
        if _is_only_named():
            return handle_of(self)
        raise getattr(self, _REFUSAL)()

    @property
    def device(self) -> str:
        return str(handle_of(self).device)

    def assign(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """A new value from outside makes it up to date here; every process gives it, as every process assigns."""
        if _is_only_named() or not tf.executing_eagerly():
            return super().assign(value, *args, **kwargs)  # type: ignore[misc]
        given = tf.convert_to_tensor(value, self.dtype)
        self.shape.assert_is_compatible_with(given.shape)
        gen_resource_variable_ops.assign_variable_op(handle_of(self), given)  # TensorFlow's own compares shapes with
        _make_readable(self)  # what is there now
        return self.assign(given, *args, **kwargs)

    def __repr__(self) -> str:
        return (
            f"<{self.name!r} {self.shape} {self.dtype.name}, up to date in {_named(holders_of(self) or frozenset())}>"
        )


@functools.cache
def _away_class(kind: type) -> type:
    return type(f"Away{kind.__name__}", (_Away, kind), {})
