"""Where a tensor of the main graph is."""

from __future__ import annotations

from typing import NamedTuple

from whale_tf.ir.graph import Ref

HOST = 0


class Placed(NamedTuple):
    """A tensor of the main graph and the device it is on, as an index; the host is device 0."""

    ref: Ref
    device: int
