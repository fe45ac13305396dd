"""The one-device step as it was captured, as a function that can be run in float64 or for its gradients alone.

It is the very trace that the plan was made of, which TensorFlow runs as it runs any `tf.function`. So gradients have
the same names in both, and no second trace is needed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.python.eager import context, execute  # private; tried with 2.21
from tensorflow.python.framework import func_graph, graph_to_function_def, ops  # private; tried with 2.21

from whale_tf.ir.graph import Graph

Functions = Sequence[function_pb2.FunctionDef]


@dataclass(frozen=True)
class Reference:
    """The trace that the plan was made of.

    Attributes:
      graph: TensorFlow's graph.
      arguments: for each tensor argument in order, the name of its placeholder.
      outputs: (operation, index) of each tensor returned.
      step: the same program without variables, whose `Gradient` nodes are called as the operations of `graph`.
    """

    graph: func_graph.FuncGraph
    arguments: tuple[str, ...]
    outputs: tuple[tuple[str, int], ...]
    step: Graph


class Bound(NamedTuple):
    """What a function takes in the place of what the trace took from outside.

    Attributes:
      handles: by the id of a variable's handle, that of the variable that stands for it.
      tensor: what stands for a tensor.
    """

    handles: Mapping[int, Any]
    tensor: Callable[[Any], Any]


class OneDevice:
    """The captured step for one device, or a part of it.

    Args:
      outputs: what it returns; by default what the step does, and then it assigns variables and has effects, too.
      change: made of its functions before they run; gives them other names.
    """

    def __init__(
        self,
        reference: Reference,
        bound: Bound,
        change: Callable[[Functions], Functions],
        outputs: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        graph = reference.graph
        effects = graph.control_outputs if outputs is None else ()
        wanted = [_tensor(graph, each) for each in (reference.outputs if outputs is None else outputs)]
        arguments = [_tensor(graph, (name, 0)) for name in reference.arguments]
        captures = [(bound.handles.get(id(outer), outer), inner) for outer, inner in graph.captures]
        self._captured = [bound.tensor(outer) for outer, _ in captures]
        inputs = [*arguments, *(inner for _, inner in captures)]
        operations = _needed(graph, [*(each.op for each in wanted), *effects])
        main = graph_to_function_def.graph_to_function_def(graph, operations, inputs, wanted)
        main.signature.name, main.signature.is_stateful = f"whale_one_device_{ops.uid()}", True
        for effect in effects:
            main.signature.control_output.append(effect.name)
            main.control_ret[effect.name] = effect.name
        functions = change((*graph.as_graph_def().library.function, main))
        self._name, self._outputs = functions[-1].signature.name, len(wanted)
        here = context.context()
        for function in functions:
            here.add_function_def(function)
        weakref.finalize(self, _remove, [function.signature.name for function in functions])

    def __call__(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Runs it on the global batch; gives the flat outputs."""
        here = context.context()
        attrs = ("config_proto", here.function_call_options.config_proto_serialized, "executor_type", "")
        return list(execute.execute(self._name, self._outputs, [*tensors, *self._captured], attrs, here) or ())


def _tensor(graph: func_graph.FuncGraph, output: tuple[str, int]) -> tf.Tensor:
    return graph.get_operation_by_name(output[0]).outputs[output[1]]


def _needed(graph: func_graph.FuncGraph, roots: Sequence[Any]) -> list[Any]:
    """The operations that these need, in the order of the program."""
    found, stack = set[str](), list(roots)
    while stack:
        operation = stack.pop()
        if operation.name not in found:
            found.add(operation.name)
            stack.extend([*(tensor.op for tensor in operation.inputs), *operation.control_inputs])
    return [operation for operation in graph.get_operations() if operation.name in found]


def _remove(names: Sequence[str]) -> None:
    here = context.context()
    for name in names:
        if here.has_function(name):
            here.remove_function(name)
