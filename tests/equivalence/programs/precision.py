"""Programs in float64, where Adam would make a number of a gradient that is rounding only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras


@contextmanager
def float64() -> Iterator[None]:
    """Layers made inside compute in float64, and so do optimizers of their variables.

    Adam divides a gradient by its own size. Where the true gradient is 0 (a bias before a softmax over places, a unit
    that is off), what float32 leaves of it is rounding, and becomes a full step in a random direction.
    """
    policy, numbers = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(numbers)
