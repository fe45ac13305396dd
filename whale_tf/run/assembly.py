"""The one value that the parts' values of a tensor stand for, by its state: see ir/sharding.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from whale_tf.ir.sharding import Extent, Partial, Reduction, Split, Value
from whale_tf.ir.sizes import Array
from whale_tf.plan.states import as_total

REDUCE: Mapping[Reduction, Callable[..., Any]] = MappingProxyType(
    {
        Reduction.SUM: np.add.reduce,
        Reduction.MAX: np.maximum.reduce,
        Reduction.MIN: np.minimum.reduce,
        Reduction.PROD: np.multiply.reduce,
        Reduction.ALL: np.logical_and.reduce,
        Reduction.ANY: np.logical_or.reduce,
    }
)


@dataclass(frozen=True)
class Piece:
    """What one part has of a tensor.

    Attributes:
      share: the part's examples over all examples.
      first: the number of its first example in the global batch.
    """

    values: Array
    share: float
    first: int


class Unassembled(Exception):  # noqa: N818  # it is told to no user: the value check makes an error of it
    """Pieces that do not fit together."""


def assembled(value: Value, pieces: Sequence[Piece]) -> list[Array]:
    """The whole value; of one that every part has, each part's.

    Args:
      pieces: of all parts, in the order of the examples.
    Raises:
      Unassembled: their shapes are not those of pieces of one tensor.
    """
    value = as_total(value)
    parts = [_of_degree_zero(piece, float(value.degree)) for piece in pieces]
    try:
        if isinstance(value.state, Split):
            moved = [_moved(each, piece.first, value.state) for each, piece in zip(parts, pieces, strict=True)]
            return [_joined(moved, value.state)]
        if isinstance(value.state, Partial):
            return [_reduced(parts, value.state.op)]
        if isinstance(value.state, Extent):
            return [_of_all_rows(parts, value.state.at)]
    except (ValueError, IndexError) as error:
        raise Unassembled(str(error)) from error
    return parts


def _of_degree_zero(piece: Piece, degree: float) -> Array:
    if not degree:
        return piece.values
    return np.asarray(piece.values * np.asarray(piece.share**-degree, piece.values.dtype))


def _moved(values: Array, first: int, split: Split) -> Array:
    """Positions that a part counts from its first example, as the whole batch counts them."""
    if not split.ahead:
        return values
    columns = np.zeros(values.shape[-1:] if split.column else (), values.dtype)
    columns[(0,) if split.column else ()] = first * split.ahead
    return np.asarray(values + columns)


def _joined(parts: Sequence[Array], split: Split) -> Array:
    """Pieces of a dim put together; where it is seen as (outer, rest), those of rest."""
    dim, outer = split.dim, split.outer
    if any(each.shape[dim] % outer for each in parts):
        raise ValueError(f"dim {dim} is not {outer} times as long as a piece")
    seen = [each.reshape(*each.shape[:dim], outer, each.shape[dim] // outer, *each.shape[dim + 1 :]) for each in parts]
    joined = np.concatenate(seen, axis=dim + 1)
    return joined.reshape(*joined.shape[:dim], outer * joined.shape[dim + 1], *joined.shape[dim + 2 :])


def _of_all_rows(parts: Sequence[Array], at: int) -> Array:
    """The shape of all parts' rows; a size that is not known stays so."""
    rows = (np.arange(parts[0].size) == at) & (parts[0] >= 0)
    return np.where(rows, np.add.reduce(parts), parts[0]).astype(parts[0].dtype)


def _reduced(parts: Sequence[Array], op: Reduction) -> Array:
    """Sums of floats in double precision, so that they are rounded once."""
    dtype = parts[0].dtype
    precise = [each.astype(np.float64) for each in parts] if _is_rounded(dtype) and op is Reduction.SUM else parts
    if len({each.shape for each in parts}) > 1:
        raise ValueError(f"parts of a total have the shapes {', '.join(str(list(each.shape)) for each in parts)}")
    return np.asarray(REDUCE[op](np.stack(precise))).astype(dtype)


def _is_rounded(dtype: np.dtype[Any]) -> bool:
    """Whether it is a float of fewer bits than a double; bfloat16 has a kind of its own."""
    return dtype.name in ("bfloat16", "float16", "float32")
