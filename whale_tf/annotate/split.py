"""The scope whose operators are cut over the devices of their stage: `with split():`."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import KW_ONLY, dataclass
from numbers import Integral

from whale_tf.annotate.scopes import Scope, user_line
from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import Line, ScopeError


@dataclass(frozen=True, eq=False)
class split(Scope):
    """The operators inside are cut over the devices of the stage around it, or of the replica where there is no stage.

    The first product with a parameter inside is cut along one dim of the parameter, and what depends on it follows:
    biases, activations, the next product, all their gradients. Products that this does not reach are cut likewise, in
    their order. Without a product, the rows of the first table that is looked up in are cut. The numbers are those of
    one device; what has to be brought together between the devices is shown by the plan.

    Args:
      dim: which dim of the parameter; by default one that the product gives on, as the columns of a dense layer.
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
