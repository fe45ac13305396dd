"""Traces of small steps, for the tests of what capture makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from whale_tf.capture.outside import Outside
from whale_tf.capture.record import Trace, record
from whale_tf.capture.translate import CapturedStep, translate
from whale_tf.ir.graph import Graph, Node
from whale_tf.ir.verify import verify

EXAMPLES, WIDTH = 8, 3


def recorded(step: Callable[..., Any], *, may_create: bool = False) -> Trace:
    """The trace of a step of x [EXAMPLES, WIDTH]."""
    specs = [tf.TensorSpec([EXAMPLES, WIDTH], tf.float32)]
    return record(step, lambda tensors: (tuple(tensors), {}), specs, "step", examples=EXAMPLES, may_create=may_create)


def captured(step: Callable[..., Any]) -> CapturedStep:
    """The same as a graph."""
    found = translate(recorded(step), [True], Outside())
    verify(found.graph, after="translate")
    return found


def only(graph: Graph, op: str) -> Node:
    """The one node of a type."""
    (node,) = [node for node in graph if node.op == op]
    return node
