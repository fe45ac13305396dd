"""Tensors from outside the step, and constants so large that they are handed over like them.

A constant is copied into every stage function that uses it, and optimized there again. A large one (the step holds a
table as an array) is therefore taken out of the graph and passed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

LARGE_BYTES = 2**20
HOST = "CPU:0"


@dataclass
class Outside:
    """The tensors that all traces of one step take from outside: the same one has the same index in each.

    Attributes:
      tensors: by the index of `Captured` and `Handle` nodes.
    """

    tensors: list[Any] = field(default_factory=list)
    _indices: dict[Hashable, int] = field(default_factory=dict)

    def index_of(self, tensor: Any) -> int:
        """The index of a tensor that the step captured."""
        return self._index(id(tensor), tensor)

    def index_of_constant(self, value: tensor_pb2.TensorProto) -> int:
        """The index of a constant, as a tensor on the host."""
        digest = hashlib.sha256(value.SerializeToString(deterministic=True)).hexdigest()
        if digest in self._indices:
            return self._indices[digest]
        with tf.init_scope(), tf.device(HOST):
            return self._index(digest, tf.constant(tf.make_ndarray(value)))

    def _index(self, key: Hashable, tensor: Any) -> int:
        if key not in self._indices:
            self._indices[key] = len(self.tensors)
            self.tensors.append(tensor)
        return self._indices[key]


def is_large(value: tensor_pb2.TensorProto) -> bool:
    """Whether a constant is to be handed over."""
    return bool(value.ByteSize() > LARGE_BYTES)
