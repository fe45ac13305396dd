"""What is cut over the devices of a stage, `with split():`, and what is whole on all of them, `whole(tensor)`."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any

import tensorflow as tf

from whale_tf.annotate.lines import user_line
from whale_tf.annotate.scopes import Scope, as_made_in
from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import Line, ScopeError


@dataclass(frozen=True, eq=False)
class split(Scope):
    """The operators inside are cut over the devices of the stage around it, or of the replica where there is no stage.

    The first product with a parameter inside is cut along one dim of the parameter, and what depends on it follows:
    biases, activations, the next product, all their gradients. Products that this does not reach are cut likewise, in
    their order. Without a product, the rows of the first table that is looked up in are cut; without either, the values
    inside along `dim`, as sequences between the layers. The numbers are those of one device; what has to be brought
    together between the devices is shown by the plan.

    Args:
      dim: which dim of the parameter, by default one that the product gives on, as the columns of a dense layer; where
        there is no parameter, which dim of the values.
    Raises:
      ScopeError: a dim that cannot be.
    """

    _: KW_ONLY
    dim: int | None = None

    def __post_init__(self) -> None:
        if self.dim is not None and (not isinstance(self.dim, Integral) or isinstance(self.dim, bool)):
            raise ScopeError(
                "the dim of a split scope must be a whole number",
                details=[f"dim is {self.dim!r}"],
                at=[user_line()],
                way_out="Write split() for what a product gives on, or split(dim=0) for the rows of its parameter.",
            )

    @property
    def identity(self) -> Hashable:
        return self

    def opened_at(self, line: Line) -> Opened:
        return Opened("", "split", "", "", line, dim=None if self.dim is None else int(self.dim))


@dataclass(frozen=True, eq=False)
class _Whole(Scope):
    """The operations that `whole` makes."""

    @property
    def identity(self) -> Hashable:
        return "whole"

    def opened_at(self, line: Line) -> Opened:
        return Opened("", "whole", "", "", line)


def whole(value: Any) -> Any:
    """The same value, which every device of a stage that is cut has whole: splits do not go on behind it.

    Neither do they in the gradient of it.

    Args:
      value: a tensor, or a structure of tensors.
    """
    return tf.nest.map_structure(_whole, value)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _whole(tensor: Any) -> Any:
    with _Whole():
        same = tf.identity(tensor)

    def gradient(upstream: Any) -> Any:
        with as_made_in(same):
            return tf.identity(upstream)

    return same, gradient
