"""A failure inside a running step, told in the user's terms."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from whale_tf.errors import RunError

if TYPE_CHECKING:
    from whale_tf.run.compiled import Parts

NODE = re.compile(r"\{\{(?:function_node|node) ([^}]+)\}\}")


def run_error(error: tf.errors.OpError, parts: Parts) -> RunError:
    """The failure with the user's line; also an instance of the class of `error`."""
    message = error.message or str(error)
    first = message.split("\n")[0]
    operations = [name.split("/_")[0] for name in NODE.findall(message)]
    lines = []
    for name in reversed(operations):
        line = _line(name, parts)
        if line is not None:
            lines.append(line)
            break
    action = re.search(r"r(\d+)/(\d+)([FBIW])(\d+)", message)
    where = []
    if action and parts.plan.parts > 1:
        kinds = {"F": "forward", "B": "backward", "I": "input gradients", "W": "weight gradients"}
        replica, stage, kind, i = action.groups()
        where.append(f"replica {replica}, stage {stage}, {kind} of micro-batch {i}")
    return _class_of(type(error))(
        _without_nodes(first),
        details=where,
        at=lines,
        way_out="The variables are as before the step; the next call runs normally.",
        source=error,
    )


def _line(name: str, parts: Parts) -> Any:
    pieces = name.split("/")
    for start in range(len(pieces)):
        for end in range(len(pieces), start, -1):
            line = parts.line_of("/".join(pieces[start:end]))
            if line is not None and line.number:
                return line
    return None


def _without_nodes(text: str) -> str:
    text = re.sub(r"\s*\[\[\{\{node.*?\}\}\]\]", "", text)
    return re.sub(r"\{\{(?:function_node|node) [^}]*\}\}\s*", "", text).strip()


@functools.cache
def _class_of(kind: type[tf.errors.OpError]) -> Any:
    """A RunError that `except tf.errors.<kind>` catches too."""

    class Failure(RunError, kind):  # type: ignore[misc, valid-type]
        def __init__(self, rule: str, *, source: tf.errors.OpError, **parts: Any) -> None:
            kind.__init__(self, source.node_def, source.op, rule)
            RunError.__init__(self, rule, **parts)
            self._message = str(self.args[0])

        def __str__(self) -> str:
            return self._message

    Failure.__name__ = Failure.__qualname__ = f"RunError({kind.__name__})"
    return Failure
