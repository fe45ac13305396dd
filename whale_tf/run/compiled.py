"""A step that is ready to run: FunctionDefs registered with TensorFlow, and the arguments they take."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context, execute  # private; tried with 2.21
from tensorflow.python.framework import ops  # private; tried with 2.21

from whale_tf.plan.roles import variable_of
from whale_tf.rewrite.collapse import collapse
from whale_tf.rewrite.localize import localize
from whale_tf.rewrite.program import Program
from whale_tf.run.away import Holding, bring_back, handle_of
from whale_tf.run.collectives import form_groups
from whale_tf.run.communicator import load
from whale_tf.run.failure import run_error, world_error
from whale_tf.run.lower import Lowered, lower
from whale_tf.run.parts import Parts
from whale_tf.run.reference import Functions


class Compiled:
    """One plan of a step, for one signature.

    Args:
      change: made of its functions before they run; gives them other names.
    """

    def __init__(self, parts: Parts, change: Callable[[Functions], Functions] | None = None) -> None:
        self.parts, self._change = parts, change
        self.plan = parts.plan
        self.rank = parts.world.rank if parts.world else 0
        self.holding = _holding(parts)
        self.program = localize(parts.program, self.rank)
        self.lowered, names = self._register(self.program)
        weakref.finalize(self, remove, names)
        form_groups(self.lowered.groups)

    def __call__(self, tensors: Sequence[tf.Tensor]) -> Any:
        """Runs the step on the global batch; the variables have their new values when it returns."""
        return self.parts.result(self._guarded(self.lowered, tensors))

    def gather(self) -> None:
        """Brings all its variables up to date in every process; nothing in a process that is alone.

        Raises:
          RunError: the run has ended, or ends now since another process does not come.
        """
        world = self.parts.world
        if world is None:
            return
        world.member.check()
        try:
            bring_back(world, self.parts.variables.values())
        except tf.errors.OpError as error:
            raise world_error(error, self.parts, world.member) from error

    @contextlib.contextmanager
    def variant(self, program: Program) -> Iterator[Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]]:
        """Another program of the same step while the context lasts: takes the global batch, gives its flat outputs."""
        lowered, names = self._register(program)
        try:
            yield lambda tensors: self._guarded(lowered, tensors)
        finally:
            remove(names)

    def _run(self, lowered: Lowered, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        inputs = [tensors[index] for index in lowered.arguments]
        inputs += [self.parts.outside[index] for index in lowered.outside]
        inputs += [handle_of(self.parts.variables[name]) for name in lowered.variables]
        signature = lowered.main.signature
        attrs = ("config_proto", lowered.config, "executor_type", "")
        return list(execute.execute(signature.name, len(signature.output_arg), inputs, attrs, context.context()) or ())

    def _guarded(self, lowered: Lowered, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Runs; a failure is told with the user's line, and to the other processes."""
        member = self.parts.world.member if self.parts.world else None
        if member is not None:
            member.check()
        try:
            if self.holding is not None:
                self.holding.prepare()
            outputs = self._run(lowered, tensors)
        except tf.errors.OpError as error:
            if member is not None:
                raise world_error(error, self.parts, member) from error
            vague = isinstance(error, tf.errors.CancelledError) or (self.program.inline and self.plan.parts > 1)
            cause = (self._cause(tensors) if vague else None) or error
            raise run_error(cause, self.parts) from cause
        if self.holding is not None:
            self.holding.settle()
        return outputs

    def _cause(self, tensors: Sequence[tf.Tensor]) -> tf.errors.OpError | None:
        """What failed and in which call, if the step fails on one device too; the variables are not touched."""
        lowered, names = self._register(collapse(self.program))
        try:
            self._run(lowered, tensors)
        except tf.errors.OpError as error:
            return error
        finally:
            remove(names)
        return None

    def _register(self, program: Program) -> tuple[Lowered, list[str]]:
        """Lowers a program and makes its functions known to TensorFlow; gives the names under which they are."""
        load()
        instances = {node.attrs["id"]: ops.uid() for node in program.main if node.op == "Reduce"}
        lowered = lower(program, self.parts.calls, f"whale_{ops.uid()}", self.parts.name, instances)
        if self._change is not None:
            *functions, main = self._change((*lowered.functions, lowered.main))
            lowered = replace(lowered, functions=tuple(functions), main=main)
        here = context.context()
        names = []
        for function in (*lowered.functions, lowered.main):
            here.add_function_def(function)
            names.append(function.signature.name)
        return lowered, names


def _holding(parts: Parts) -> Holding | None:
    if parts.world is None:
        return None
    plan, graph = parts.plan, parts.step.graph
    written = {variable_of(graph[name]) for name in graph.effects if graph[name].op == "Write"}
    groups = range(len(plan.layout.groups))
    read_in, assigned_in = dict[str, frozenset[int]](), dict[str, frozenset[int]]()
    for name, variable in plan.variables.items():
        read_in[name] = frozenset(chain.from_iterable(variable.users(plan.layout, group) for group in groups))
        if name in written:
            holders = (variable.holders(plan.layout, group) for group in groups)
            assigned_in[name] = frozenset(chain.from_iterable(holders))
    return Holding(parts.name, parts.world, parts.variables, read_in, assigned_in)


def remove(names: Sequence[str]) -> None:
    """Makes TensorFlow forget functions."""
    here = context.context()
    for name in names:
        if here.has_function(name):
            here.remove_function(name)
