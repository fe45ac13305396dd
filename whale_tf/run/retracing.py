"""Warns where a step is traced again and again, as `tf.function` does, and says what differs between the calls.

calls     x[8,4]  x[7,4]  x[8,4]  x[6,4]  x[5,4]  x[3,4]
traces    new     new             new     new     new       5 of the last 6 calls: one warning
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator

from whale_tf.errors import Line
from whale_tf.run.signature import Arguments

WATCHED_CALLS = 10
MANY_TRACES = 5
SHOWN = 3


class Retracing:
    """Counts the traces among a step's last calls; warns once.

    Args:
      step: the step's name.
      at: where it is defined.
    """

    def __init__(self, step: str, at: Line) -> None:
        self._step, self._at = step, at
        self._last: deque[bool] = deque(maxlen=WATCHED_CALLS)
        self._before: Arguments | None = None
        self._warned = False

    def count(self, arguments: Arguments, *, new: bool) -> None:
        """Notes a call, and whether it needs a new trace."""
        self._last.append(new)
        before, self._before = self._before, arguments if new else self._before
        if new and before is not None and sum(self._last) >= MANY_TRACES and not self._warned:
            self._warned = True
            warnings.warn_explicit(self._text(before, arguments), UserWarning, self._at.file, self._at.number)

    def _text(self, before: Arguments, now: Arguments) -> str:
        changes = list(_changes(before, now))
        shown = [
            *(what for what, _ in changes[:SHOWN]),
            *([f"and {len(changes) - SHOWN} more"] * (len(changes) > SHOWN)),
        ]
        what, ways_out = "; ".join(shown) or "the devices changed", dict.fromkeys(way_out for _, way_out in changes)
        return (
            f"{sum(self._last)} of the last {len(self._last)} calls of the step '{self._step}' were traced anew, and "
            f"each trace is planned and compiled. Between the last two of them {what}. {' '.join(ways_out)}"
        )


def _changes(before: Arguments, now: Arguments) -> Iterator[tuple[str, str]]:
    """What differs between two calls, each with what can be done."""
    old, new = _tensors(before), _tensors(now)
    sizes = {name for name, cut in zip(now.names, now.batch, strict=True) if cut}
    for name in {**old, **new}:
        if old.get(name) == new.get(name):
            continue
        if name not in old or name not in new:
            yield f"'{name}' is a tensor in one only", "Call it with the same arguments."
            continue
        (dtype, shape), (other, there) = old[name], new[name]
        change = f"'{name}' went from {dtype} {list(shape)} to {other} {list(there)}"
        if dtype != other:
            yield change, "Convert it to the same dtype before each call."
        elif name in sizes and len(shape) == len(there) and shape[1:] == there[1:]:
            yield change, "Keep the batch at one size: dataset.batch(n, drop_remainder=True), or pad it and mask."
        else:
            yield change, "Pad it to one of a few sizes."
    constants, others = dict(before.constants), dict(now.constants)
    for name in {**constants, **others}:
        if name not in constants or name not in others:
            yield f"'{name}' is a Python value in one only", "Call it with the same arguments."
        elif constants[name] is not others[name] and constants[name] != others[name]:
            yield _constant(name, constants[name], others[name])


def _constant(name: str, value: object, other: object) -> tuple[str, str]:
    if isinstance(value, (int, float)) and isinstance(other, (int, float)):
        return f"'{name}' went from {value!r} to {other!r}", f"Pass a number that changes as tf.constant({name})."
    return f"'{name}' is another {type(other).__name__}", f"Pass the same object as '{name}' in each call."


def _tensors(arguments: Arguments) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    return {
        name: (tensor.dtype.name, tuple(tensor.shape))
        for name, tensor in zip(arguments.names, arguments.tensors, strict=True)
    }
