"""Traces the step and remembers what a GraphDef forgets.

TensorFlow's own tracing does the work. While it runs, some of its entry points are wrapped, so that the trace also
tells:

    tape.gradient, jacobian, tf.gradients    which tensors are gradients, of what, and what a gradient call made
    batch_jacobian, pfor                     that the gradient calls inside are only a part of them
    record_gradient                          which forward operation each backward one belongs to
    the call of a tf.function                what is inside, by tracing it into the step's graph; not if XLA compiles it
    the creation of variables                that the step makes some: at its first trace they are kept

`annotate.scopes` stamps on each operation in which of the user's scopes it stands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import tensorflow as tf
from tensorflow.python import pywrap_tfe  # private; tried with 2.21
from tensorflow.python.eager import execute  # private; tried with 2.21
from tensorflow.python.eager import record as tape_record  # private; tried with 2.21
from tensorflow.python.eager.polymorphic_function import (
    autograph_util,
    polymorphic_function,
)  # private; tried with 2.21
from tensorflow.python.framework import func_graph, ops  # private; tried with 2.21
from tensorflow.python.ops.parallel_for import control_flow_ops  # private; tried with 2.21

from whale_tf.annotate import lines, scopes
from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import CaptureError, Line, VariableError, WhaleError

TRACING = threading.RLock()
COMPOSITES = (tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)


@dataclass(frozen=True)
class Marker:
    """One gradient that a gradient call returned.

    Attributes:
      operation: the identity it passes through.
      call: the number of the gradient call, from 1.
      part: `dense`, `values` / `indices` of IndexedSlices, or `adjoint`: the gradient that comes back through a dense
        one.
      partner: for a part of IndexedSlices, the operation of the other part.
      source: the handle of the variable it is a gradient of; None for other tensors.
      tensor: the (operation, index) of such another tensor; None for a variable.
    """

    operation: str
    call: int
    part: str
    partner: str
    source: Any
    tensor: tuple[str, int] | None


@dataclass
class Trace:
    """A step as TensorFlow traced it.

    Attributes:
      graph: TensorFlow's graph; kept for the lines of its operations.
      arguments: for each tensor argument in order, the name of its placeholder.
      structure: the outputs as the step returned them, with the graph's tensors.
      outputs: (operation, index) of each tensor returned, those that a ragged or sparse one consists of included.
      markers: gradients, in the order they were returned.
      targets: for each gradient call, the operations of its targets.
      calls: the operations a gradient call made, with its number.
      opened: the scopes, in the order they were opened.
      empty_gradients: lines where all gradients of a call were None.
      may_create: whether variables that the step creates are made.
      created: how many were.
      depth: how many gradient calls and vectorized loops the trace is inside, while it is made.
    """

    graph: func_graph.FuncGraph
    arguments: tuple[str, ...] = ()
    structure: Any = None
    outputs: tuple[tuple[str, int], ...] = ()
    markers: list[Marker] = field(default_factory=list)
    targets: dict[int, tuple[str, ...]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    opened: tuple[Opened, ...] = ()
    empty_gradients: list[Line] = field(default_factory=list)
    may_create: bool = False
    created: int = 0
    depth: int = 0


def record(
    function: Callable[..., Any],
    arguments: Any,
    specs: Sequence[tf.TensorSpec],
    name: str,
    *,
    examples: int = 0,
    may_create: bool = False,
) -> Trace:
    """Traces `function`.

    Args:
      function: the user's step.
      arguments: a function from the flat list of tensors to (args, kwargs).
      specs: shape and type of each tensor argument, with the batch it is traced at.
      name: the step's name.
      examples: the size of the batch.
      may_create: whether variables that the step creates are made; else they are refused.
    Raises:
      CaptureError, VariableError, ScopeError: the step cannot be traced into one flat graph.
    """
    graph = func_graph.FuncGraph(name)
    trace = Trace(graph, may_create=may_create)
    placeholders: list[tf.Tensor] = []

    def body() -> Any:
        placeholders.extend(
            tf.compat.v1.placeholder(spec.dtype, spec.shape, name=f"argument_{i}") for i, spec in enumerate(specs)
        )
        args, kwargs = arguments(placeholders)
        return autograph_util.py_func_from_autograph(function)(*args, **kwargs)

    with TRACING, scopes.recording() as record_of_scopes, _instrumented(trace, examples):
        try:
            func_graph.func_graph_from_py_func(name, body, (), {}, func_graph=graph)
        except WhaleError:
            raise
        except Exception as error:
            if trace.empty_gradients:
                raise _no_gradient(trace) from error
            raise
    trace.arguments = tuple(placeholder.op.name for placeholder in placeholders)
    trace.opened = record_of_scopes.opened
    _take_outputs(trace)
    if trace.empty_gradients and not trace.markers:
        raise _no_gradient(trace)
    return trace


def line_of(trace: Trace, operation: str) -> Line:
    """The user's line that made an operation, or what an operation of translation, as `assign/write`, stands for."""
    while operation:
        try:
            return lines.user_line(trace.graph.get_operation_by_name(operation).traceback)
        except (KeyError, ValueError):
            operation = operation.rpartition("/")[0]
    return Line("<unknown>", 0)


def composites(trace: Trace) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The outputs whose tensors mean something only together, with their positions in `outputs`."""
    position = {output: index for index, output in enumerate(trace.outputs)}
    waiting = tf.nest.flatten(trace.structure)
    while waiting:
        leaf = waiting.pop(0)
        if isinstance(leaf, tf.experimental.ExtensionType):
            waiting += tf.nest.flatten(vars(leaf))
        elif isinstance(leaf, COMPOSITES):
            tensors = [each for each in tf.nest.flatten(leaf, expand_composites=True) if each is not None]
            yield type(leaf).__name__, tuple(position[each.op.name, each.value_index] for each in tensors)


def _take_outputs(trace: Trace) -> None:
    trace.structure = trace.graph.structured_outputs
    leaves = tf.nest.flatten(trace.structure, expand_composites=True)
    trace.outputs = tuple((leaf.op.name, leaf.value_index) for leaf in leaves if isinstance(leaf, tf.Tensor))


def _no_gradient(trace: Trace) -> WhaleError:
    return CaptureError(
        "the gradient reaches no variable",
        details=["every gradient of the call is None"],
        at=trace.empty_gradients,
        way_out="Compute the loss inside the GradientTape, from the variables that are given to tape.gradient.",
    )


@contextmanager
def _instrumented(trace: Trace, examples: int) -> Iterator[None]:
    """Wraps TensorFlow's entry points while this thread records; other threads, and eager code, get what they had."""
    thread = threading.get_ident()

    def here() -> bool:
        return threading.get_ident() == thread and not tf.executing_eagerly()

    with ExitStack() as stack:
        patch = mock.patch.object
        tape_gradient = tf.GradientTape.gradient
        stack.enter_context(patch(tf.GradientTape, "gradient", _marking(trace, tape_gradient, here, method=True)))
        stack.enter_context(patch(tf, "gradients", _marking(trace, tf.gradients, here, method=False)))
        jacobian, batch_jacobian = tf.GradientTape.jacobian, tf.GradientTape.batch_jacobian
        whole = _marking(trace, jacobian, here, method=True)
        stack.enter_context(patch(tf.GradientTape, "jacobian", _by_example(trace, jacobian, whole, examples, here)))
        stack.enter_context(patch(tf.GradientTape, "batch_jacobian", _unmarked(trace, batch_jacobian, here)))
        stack.enter_context(patch(control_flow_ops, "pfor", _unmarked(trace, control_flow_ops.pfor, here)))
        stack.enter_context(patch(execute, "record_gradient", _naming(execute.record_gradient, here)))
        inline = _inlining(polymorphic_function.Function.__call__, here)
        stack.enter_context(patch(polymorphic_function.Function, "__call__", inline))
        with tf.variable_creator_scope(_creating(trace)):
            yield


def _marking(
    trace: Trace, original: Callable[..., Any], here: Callable[[], bool], *, method: bool
) -> Callable[..., Any]:
    """`gradient` that passes what it returns through marker identities and stamps what it makes."""

    def gradient(*args: Any, **kwargs: Any) -> Any:
        graph = trace.graph
        if not here() or trace.depth or ops.get_default_graph() is not graph:  # a part of the call or loop it is in
            return original(*args, **kwargs)
        given = dict(zip(("target", "sources") if method else ("ys", "xs"), args[1:] if method else args, strict=False))
        given.update(kwargs)
        target = given.get("target", given.get("ys"))
        sources = given.get("sources", given.get("xs"))
        before = len(graph.get_operations())
        with scopes.paused(), _inside(trace):
            result = original(*args, **kwargs)
        call = len(trace.targets) + 1
        made = graph.get_operations()[before:]
        trace.calls.update((operation.name, call) for operation in made)
        trace.targets[call] = tuple(t.op.name for t in tf.nest.flatten(target) if isinstance(t, tf.Tensor))
        flat_sources = tf.nest.flatten(sources)
        flat_results = tf.nest.flatten(result)
        if flat_results and all(value is None for value in flat_results):
            trace.empty_gradients.append(lines.user_line())
        marked = [
            None if value is None else _mark(trace, value, call, source)
            for value, source in zip(flat_results, flat_sources, strict=True)
        ]
        return tf.nest.pack_sequence_as(result, marked)

    return gradient


def _by_example(
    trace: Trace,
    original: Callable[..., Any],
    marking: Callable[..., Any],
    examples: int,
    here: Callable[[], bool],
) -> Callable[..., Any]:
    """`jacobian` that marks what it returns, except of one value per example: that is ordinary per-example code."""
    unmarked = _unmarked(trace, original, here)

    def jacobian(self: Any, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
        if not here() or not target.shape.rank or target.shape[0] != examples:
            return marking(self, target, sources, *args, **kwargs)
        with scopes.paused():
            result = unmarked(self, target, sources, *args, **kwargs)
        for source, value in zip(tf.nest.flatten(sources), tf.nest.flatten(result), strict=True):
            if value is not None:
                value.set_shape(target.shape.concatenate(source.shape))  # TensorFlow does so only where it runs eagerly
        return result

    return jacobian


def _unmarked(trace: Trace, original: Callable[..., Any], here: Callable[[], bool]) -> Callable[..., Any]:
    """A function whose own gradient calls are not marked: it vectorizes them, or makes one result of many."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not here():
            return original(*args, **kwargs)
        with _inside(trace):
            return original(*args, **kwargs)

    return call


@contextmanager
def _inside(trace: Trace) -> Iterator[None]:
    trace.depth += 1
    try:
        yield
    finally:
        trace.depth -= 1


def _mark(trace: Trace, value: Any, call: int, source: Any) -> Any:
    """The gradient behind its marker; the sizes of IndexedSlices are hidden, since accumulation changes them."""
    handle = getattr(source, "handle", None)
    tensor = (source.op.name, source.value_index) if isinstance(source, tf.Tensor) else None
    if isinstance(value, tf.IndexedSlices):
        hidden = [None, *value.values.shape[1:]]
        values = tf.compat.v1.placeholder_with_default(value.values, hidden, name=f"gradient_{call}/values")
        indices = tf.compat.v1.placeholder_with_default(value.indices, [None], name=f"gradient_{call}/indices")
        trace.markers.append(Marker(values.op.name, call, "values", indices.op.name, handle, tensor))
        trace.markers.append(Marker(indices.op.name, call, "indices", values.op.name, handle, tensor))
        return tf.IndexedSlices(values, indices, value.dense_shape)
    if not isinstance(value, tf.Tensor):
        return value
    with tape_record.stop_recording():
        marked = tf.identity(value, name=f"gradient_{call}/dense")
    trace.markers.append(Marker(marked.op.name, call, "dense", "", handle, tensor))

    def adjoint(upstream: tf.Tensor) -> list[tf.Tensor]:
        """What scales a gradient scales what is differentiated through it."""
        with tape_record.stop_recording():
            passed = tf.identity(upstream, name=f"gradient_{call}/adjoint")
        trace.markers.append(Marker(passed.op.name, call, "adjoint", "", handle, tensor))
        tape_record.record_operation("WhaleMarker", [passed], [upstream], adjoint)
        return [passed]

    tape_record.record_operation("WhaleMarker", [marked], [value], adjoint)
    return marked


def _naming(original: Callable[..., Any], here: Callable[[], bool]) -> Callable[..., Any]:
    """`record_gradient` that gives backward operations the full name of their forward twin as scope."""

    def record_gradient(op_name: Any, inputs: Any, attrs: Any, outputs: Any) -> Any:
        first = outputs[0] if isinstance(outputs, (list, tuple)) and outputs else outputs
        if not here() or not hasattr(first, "op"):
            return original(op_name, inputs, attrs, outputs)
        return pywrap_tfe.TFE_Py_RecordGradient(op_name, inputs, attrs, outputs, first.op.name)

    return record_gradient


def _inlining(original: Callable[..., Any], here: Callable[[], bool]) -> Callable[..., Any]:
    """`tf.function.__call__` that traces into the caller's graph, so that tapes and scopes inside are seen."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not here() or self._jit_compile or (self.input_signature is not None and kwargs):
            return original(self, *args, **kwargs)
        if self.input_signature is not None and len(args) == len(self.input_signature):
            pairs = zip(self.input_signature, args, strict=True)
            args = tuple(tf.nest.map_structure(_converted, spec, arg) for spec, arg in pairs)
        python_function = self._python_function
        if self._autograph:
            python_function = autograph_util.py_func_from_autograph(python_function)
        return python_function(*args, **kwargs)

    return call


def _converted(spec: Any, value: Any) -> Any:
    return tf.convert_to_tensor(value, spec.dtype) if isinstance(spec, tf.TensorSpec) else value


def _creating(trace: Trace) -> Callable[..., Any]:
    """A creator of variables: in the first trace they are made outside the graph, afterwards they are refused."""

    def create(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
        if tf.executing_eagerly() or ops.get_default_graph() is not trace.graph:
            return next_creator(**kwargs)
        value = kwargs.get("initial_value")
        known = tf.get_static_value(value) if isinstance(value, tf.Tensor) else value
        if trace.may_create and known is not None:
            trace.created += 1
            with tf.init_scope():
                return next_creator(**{**kwargs, "initial_value": known})
        name = kwargs.get("name") or "Variable"
        if trace.may_create:
            raise VariableError(
                f"variable '{name}' is created inside the step, from a value that is computed there",
                details=["a step is traced once and run many times; a variable must have its first value before"],
                at=[lines.user_line()],
                way_out="Give it a function that makes its first value, or create it before the step.",
            )
        raise VariableError(
            f"variable '{name}' is created at every call of the step",
            details=["a step is traced once and run many times; variables are made in the first call, and kept"],
            at=[lines.user_line()],
            way_out="Keep it: create it before the step, or only if it is not there yet (`if self.v is None:`).",
        )

    return create
