"""Labels: which call of the program a call is. They are the same in all processes, whatever order these trace in.

    f at train.py:8            in the tf.function 'f', the first time that it comes to this line
    f at train.py:8 #2         the second time
    f, mean at math.py:3       in 'f', which calls 'mean', which has the line
    mean at math.py:3          outside a tf.function, each time
    f, message from 0 to 1     both ends of a message have one label, at whatever lines they are
    f, message                 of ends whose ranks are known only when it runs

Functions that are made by one `def`, like those of a factory, have the same labels. Where they run side by side, or in
another order on some ranks, calls in them need labels of their own: `label=`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections import Counter
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import control_flow_v2_func_graphs as bodies  # private; tried with 2.21
from tensorflow.python.util import tf_stack  # private; tried with 2.21

COUNTER = "_whale_tf_labels"  # the attribute of a graph that counts the calls in it


def label_here(caller: int | None, label: str | None) -> str:
    """The label of a collective that the user's code makes now: given, or of its line; in a function counted."""
    if label is None:
        function, line = _user_line()
        name = _function_name()
        label = f"{function} at {line}" if name in ("", function) else f"{name}, {function} at {line}"
    return counted(label, caller)


def label_of_message(ends: str, caller: object, label: str | None) -> str:
    """The label of a message, as one of its ends makes it now: the sender and the receiver are callers of their own.

    `ends`: what both ends say of it, as "from 0 to 1".
    """
    if label is None:
        name, message = _function_name(), f"message {ends}".strip()
        label = f"{name}, {message}" if name else message
    return counted(label, caller)


def counted(label: str, caller: object) -> str:
    """`label`, and from the second time that the graph at hand has it for this caller on, with the number of times."""
    if tf.executing_eagerly():
        return label
    graph = _function_graph()
    calls: Counter[tuple[str, object]] | None = getattr(graph, COUNTER, None)
    if calls is None:
        calls = Counter()
        setattr(graph, COUNTER, calls)
    calls[label, caller] += 1
    return label if calls[label, caller] == 1 else f"{label} #{calls[label, caller]}"


def _function_graph() -> Any:
    """The graph of the tf.function that is traced: its loops and branches have graphs of their own."""
    graph = tf.compat.v1.get_default_graph()
    while isinstance(graph, bodies.ControlFlowFuncGraph):
        graph = graph.outer_graph
    return graph


def _function_name() -> str:
    """The name of the tf.function that is traced; empty outside."""
    return "" if tf.executing_eagerly() else str(getattr(_function_graph(), "name", ""))


def _user_line() -> tuple[str, str]:
    """Function, and file with line, of the innermost frame that is neither whale_tf's nor TensorFlow's.

    Code that AutoGraph has converted counts as what it was made from.
    """
    stack = list(tf_stack.extract_stack())
    frame = next((each for each in reversed(stack) if not _is_foreign(each.filename)), stack[0])
    return frame.name, f"{Path(frame.filename).name}:{frame.lineno}"


@functools.cache
def _foreign_places() -> tuple[str, ...]:
    specs = [importlib.util.find_spec(package) for package in ("whale_tf", "tensorflow", "keras")]
    folders = [folder for spec in specs if spec is not None for folder in spec.submodule_search_locations or ()]
    return (*(folder + os.sep for folder in folders), contextlib.__file__, functools.__file__, "<frozen ")


@functools.cache
def _is_foreign(file: str) -> bool:
    return file.startswith(_foreign_places()) or "__autograph_generated_file" in file
