"""The two programs that `verify` compares: the plan, and the step on one device, as they are or in float64.

as they are    the plan that runs, and a `tf.function` of the user's step, on the user's variables
in float64     the plan's functions and those of its trace, widened, on float64 copies of the variables
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from whale_tf.ir.graph import Graph
from whale_tf.ir.names import Names
from whale_tf.run.away import handle_of
from whale_tf.run.compiled import Compiled
from whale_tf.run.reference import Bound, Functions, OneDevice
from whale_tf.run.signature import Arguments
from whale_tf.run.widen import is_wider, rename, widen, wider

SUFFIX = "_changed"


@dataclass(frozen=True)
class Pair:
    """Two programs of one step that use the same variables.

    Attributes:
      compiled: the plan.
      planned: runs it; gives what the step returns.
      single: the same of the step on one device.
      tensors: the global batch.
      variables: by name.
      bound: what a part of the trace takes from outside.
      change: what its functions are made into.
      kept: operations that are not in the pair's precision.
    """

    compiled: Compiled
    planned: Callable[[], Any]
    single: Callable[[], Any]
    tensors: Sequence[tf.Tensor]
    variables: Mapping[str, Any]
    bound: Bound
    change: Callable[[Functions], Functions]
    kept: frozenset[str] = frozenset()

    @property
    def step(self) -> Graph:
        """The captured step, with a `Gradient` node for each gradient."""
        return self.compiled.parts.reference.step

    def gradients(self) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """The gradients of variables, by the names of their nodes in `step`: the plan's, and those of one device."""
        program = self.compiled.program
        places_of = program.gradients(self.step)
        names, outputs = list(places_of), tuple(places_of.values())
        with self.compiled.variant(replace(program, main=replace(program.main, outputs=outputs))) as run:
            planned = run(self.tensors)
        places = [(name, 0) for name in names]
        single = OneDevice(self.compiled.parts.reference, self.bound, self.change, places)
        return dict(zip(names, planned, strict=True)), dict(zip(names, single(self.tensors), strict=True))


def as_it_is(plain: Any, compiled: Compiled, arguments: Arguments) -> Pair:
    """The plan, and the plain step.

    Args:
      plain: `tf.function` of the user's Python function.
    """
    args, kwargs = arguments.rebuilt(arguments.tensors)
    touched = plain.get_concrete_function(*args, **kwargs).graph.variables
    return Pair(
        compiled,
        lambda: compiled(arguments.tensors),
        lambda: plain(*args, **kwargs),
        arguments.tensors,
        _joined(compiled.parts.variables, touched),
        Bound({}, lambda tensor: tensor),
        lambda functions: rename(functions, SUFFIX),
    )


def in_float64(compiled: Compiled, arguments: Arguments) -> Pair:
    """The same in float64, from the values that the variables have now."""
    parts, kept = compiled.parts, set[str]()

    def change(functions: Functions) -> Functions:
        changed = widen(functions, SUFFIX)
        kept.update(changed.kept)
        return changed.functions

    variables = {name: _copy(variable) for name, variable in parts.variables.items()}
    outside = [_widened(tensor) for tensor in parts.outside]
    wide = Compiled(replace(parts, variables=variables, outside=outside), change)
    handles = {id(handle_of(variable)): variables[name].handle for name, variable in parts.variables.items()}
    bound = Bound(handles, _widened)
    single = OneDevice(parts.reference, bound, change)
    tensors = [_widened(tensor) for tensor in arguments.tensors]
    return Pair(
        wide,
        lambda: wide(tensors),
        lambda: parts.result(single(tensors)),
        tensors,
        variables,
        bound,
        change,
        frozenset(kept),
    )


def _widened(tensor: Any) -> Any:
    return tf.cast(tensor, wider(tensor.dtype)) if is_wider(tensor.dtype) else tensor


def _copy(variable: Any) -> Any:
    """A variable with the same value in float64; the variable itself if it has no floats."""
    dtype = tf.as_dtype(variable.dtype)
    if not is_wider(dtype):
        return variable
    value = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=dtype)
    with tf.device(variable.handle.device):
        return tf.Variable(tf.cast(value, wider(dtype)), shape=variable.shape)


def _joined(known: Mapping[str, Any], touched: Sequence[Any]) -> dict[str, Any]:
    """The plan's variables by name, then those that only the plain step touches."""
    variables, names = dict(known), Names()
    handles = {id(variable.handle) for variable in known.values()}
    for variable in touched:
        if id(variable.handle) not in handles:
            handles.add(id(variable.handle))
            variables[names.unused(variable.name.removesuffix(":0"), variables)] = variable
    return variables
