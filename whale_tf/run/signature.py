"""The arguments of a call: which are tensors, which of these carry the batch, and what makes two calls alike."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.util import nest  # private; tried with 2.21

from whale_tf.errors import BatchError, Line


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call, taken apart.

    Attributes:
      tensors: the tensors, flat, in order.
      names: for each tensor the argument it belongs to, as `x` or `inputs['mask']`.
      batch: for each tensor whether its dim 0 is the batch.
      examples: the global batch; 0 if no tensor carries it.
      key: equal for calls that one trace serves.
      family: equal for calls that differ in the batch at most.
      structure: the arguments with each tensor replaced by its position.
      constants: the other leaves, each with its place.
      fed: whether each process gives its own part of the global batch.
    """

    tensors: tuple[tf.Tensor, ...]
    names: tuple[str, ...]
    batch: tuple[bool, ...]
    examples: int
    key: Hashable
    family: Hashable
    structure: tuple[tuple[Any, ...], dict[str, Any]]
    constants: tuple[tuple[str, Any], ...] = ()
    fed: bool = False

    def to_feed(self) -> Arguments:
        """The same arguments, of which each process is to give its own part."""
        return replace(self, fed=True, key=(self.key, "fed"))

    @property
    def cut_names(self) -> tuple[str, ...]:
        """The names of the tensors that carry the batch."""
        return tuple(name for name, cut in zip(self.names, self.batch, strict=True) if cut)

    def rebuilt(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) with other tensors in the places of these."""
        args, kwargs = tf.nest.map_structure(
            lambda leaf: tensors[leaf.index] if isinstance(leaf, _Slot) else leaf.value, self.structure
        )
        return tuple(args), kwargs

    def specs(self, examples: int) -> list[tf.TensorSpec]:
        """The tensors' shapes and types, for a batch of another size."""
        return [
            tf.TensorSpec([examples, *tensor.shape[1:]] if batch else tensor.shape, tensor.dtype)
            for tensor, batch in zip(self.tensors, self.batch, strict=True)
        ]


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor."""

    index: int


@dataclass(frozen=True)
class _Constant:
    """The place of a Python value."""

    value: Any


class _Same:
    """A constant without a hash: equal to itself only. Held here, so that no other gets its id."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def take_apart(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], whole: Sequence[str]
) -> Arguments:
    """Sorts the arguments of a call.

    Args:
      whole: names of arguments whose tensors are not cut, though their dim 0 might look like a batch.
    Raises:
      BatchError: tensors that are not `whole` differ in dim 0.
      TypeError: the arguments do not fit the function, as Python says.
    """
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{getattr(function, '__name__', 'step')}(): {error}") from None
    bound.apply_defaults()
    tensors: list[tf.Tensor] = []
    names: list[str] = []
    key: list[Hashable] = []
    constants: list[tuple[str, Any]] = []

    def take(path: Sequence[Any], leaf: Any) -> Any:
        if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)):
            raise _not_dense(_written(path), leaf, function)
        if not is_tensor(leaf):
            key.append(_hashable(leaf))
            constants.append((_written(path), leaf))
            return _Constant(leaf)
        tensors.append(tf.convert_to_tensor(leaf))
        names.append(_written(path))
        return _Slot(len(tensors) - 1)

    structure = {}
    for name, value in bound.arguments.items():
        leaves = tf.nest.flatten(value)
        paths = _paths(value, name) if leaves else []
        taken = [take(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
        structure[name] = tf.nest.pack_sequence_as(value, taken)
    batch = tuple(
        tensor.shape.rank != 0 and name.split("[")[0] not in whole for tensor, name in zip(tensors, names, strict=True)
    )
    examples = _common_size(tensors, names, batch, function)
    layout = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
    shape_key = (tuple(names), layout, tuple(key), repr(tf.nest.map_structure(type, structure)))
    family = (
        batch,
        *shape_key[2:],
        tuple((dtype, shape[cut:]) for (dtype, shape), cut in zip(layout, batch, strict=True)),
    )
    bound.arguments.update(structure)
    return Arguments(
        tuple(tensors), tuple(names), batch, examples, shape_key, family, (bound.args, bound.kwargs), tuple(constants)
    )


def is_tensor(value: Any) -> bool:
    """Whether a leaf is data: a tensor or an array. Python numbers and strings are constants, as in tf.function."""
    return isinstance(value, (tf.Tensor, np.ndarray, np.generic)) and not isinstance(value, tf.Variable)


def _paths(value: Any, name: str) -> list[list[Any]]:
    if not nest.is_nested(value):
        return [[name]]
    return [[name, *path] for path, _ in nest.flatten_with_tuple_paths(value)]


def _written(path: Sequence[Any]) -> str:
    return str(path[0]) + "".join(f"[{part!r}]" for part in path[1:])


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return (type(value), value)


def _common_size(
    tensors: Sequence[tf.Tensor], names: Sequence[str], batch: Sequence[bool], function: Callable[..., Any]
) -> int:
    sizes = {name: int(tensor.shape[0]) for tensor, name, cut in zip(tensors, names, batch, strict=True) if cut}
    if len(set(sizes.values())) > 1:
        arguments = {name.split("[")[0] for name in sizes}
        odd = min(sizes, key=lambda name: sizes[name]).split("[")[0]
        name_it = f'name what is not a batch: whale.function(whole=("{odd}",)).'
        if len(arguments) == 1:
            name_it = "pass what is not a batch as an argument of its own and name it: whale.function(whole=(name,))."
        raise BatchError(
            "the inputs have different batch sizes",
            details=[f"{name} has dim 0 = {size}" for name, size in sizes.items()],
            at=[written_at(function)],
            way_out=f"Give all of them the same number of examples, or {name_it}",
        )
    return next(iter(sizes.values()), 0)


def _not_dense(name: str, value: Any, function: Callable[..., Any]) -> BatchError:
    dense = {tf.RaggedTensor: f"{name}.to_tensor()", tf.SparseTensor: f"tf.sparse.to_dense({name})"}
    return BatchError(
        f"'{name}' is a {type(value).__name__}, which cannot be cut into replicas and micro-batches",
        details=[f"its shape is {value.shape}"],
        at=[written_at(function)],
        way_out=f"Pass a dense tensor: {dense.get(type(value), f'tf.convert_to_tensor({name})')}.",
    )


def written_at(function: Callable[..., Any]) -> Line:
    """Where a step is defined: the line of its decorator."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(function, "__name__", "step")
    if code is None:
        return Line(name, 0)
    return Line(code.co_filename.removeprefix(os.getcwd() + os.sep), code.co_firstlineno, name)
