"""The user's lines, among those of whale_tf, TensorFlow and Keras."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import linecache
import os
from collections.abc import Sequence
from traceback import FrameSummary

from tensorflow.python.util import tf_stack  # private API, tried with TensorFlow 2.21

from whale_tf.errors import Line


def user_line(frames: Sequence[FrameSummary] | None = None) -> Line:
    """The innermost line of a stack that is the user's: not of whale_tf, TensorFlow or Keras.

    Code converted by AutoGraph counts as the source it was made from.

    Args:
      frames: outermost first, as `op.traceback`; by default the stack here.
    """
    stack: Sequence[FrameSummary] = tf_stack.extract_stack() if frames is None else frames
    frame = next((frame for frame in reversed(list(stack)) if not _is_foreign(frame.filename, frame.name)), stack[0])
    file, number = frame.filename, frame.lineno or 0
    function = "" if frame.name.startswith("<") else frame.name
    return Line(file.removeprefix(os.getcwd() + os.sep), number, function, linecache.getline(file, number).strip())


@functools.cache
def _foreign_places() -> tuple[str, ...]:
    """How the names of files begin whose lines are not the user's."""
    specs = [importlib.util.find_spec(package) for package in ("whale_tf", "tensorflow", "keras", "keras_hub")]
    folders = [folder for spec in specs if spec is not None for folder in spec.submodule_search_locations or ()]
    return (*(folder + os.sep for folder in folders), contextlib.__file__, functools.__file__, "<frozen ")


@functools.cache
def _is_foreign(file: str, function: str) -> bool:
    made_by_dataclass = (file, function) == ("<string>", "__init__")
    return made_by_dataclass or file.startswith(_foreign_places()) or "__autograph_generated_file" in file
