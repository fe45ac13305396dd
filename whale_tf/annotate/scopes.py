"""The scopes of a step: `with replica():`, `with stage():` and `with split():`, stamped on each op made inside.

    with replica(2):                    Opened(key="r0", kind="replica", count=2)
        with stage():                   Opened(key="s0", kind="stage", parent="r0")
            h = tf.matmul(x, w)         the op gets the attribute _whale_scope = "s0": the innermost scope's key
        with stage(name="head"):        Opened(key="s1", kind="stage", parent="r0", name="head")
            y = tf.matmul(h, v)

Outside a recording, entering a scope does nothing. One subgroup are: stages with the same name under the same parent,
all replica scopes that agree, since the batch is cut once, and the very same scope value entered again. Each `stage()`
without a name is a new stage whenever it is run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.ops import control_flow_v2_func_graphs  # private API, tried with TensorFlow 2.21

from whale_tf.annotate.cluster import VirtualDevice
from whale_tf.annotate.lines import user_line
from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import Line, ScopeError

ATTRIBUTE = "_whale_scope"
_LETTERS = {"replica": "r", "stage": "s", "split": "d", "whole": "w"}


class Scope:
    """What can be opened: enters itself into the recording of this thread, and does nothing if there is none."""

    def __enter__(self) -> Self:
        record = _active.get()
        if record is not None:
            record.open(self)
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        record = _active.get()
        if record is not None:
            record.close(self, failed=error_type is not None)

    @property
    def identity(self) -> Hashable:
        """Equal for scopes that are one subgroup when they have the same parent."""
        return self

    def opened_at(self, line: Line) -> Opened:
        """What opening it at a line gives, still without key and parent."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class replica(Scope):
    """What is inside is replicated.

    All replica scopes of a step are one: the model may be in several, and what is outside joins them where it can.

    Args:
      count: how many replicas; by default as many as the devices allow.
      shares: relative parts of the batch, one per replica; only their ratios matter.
    Raises:
      ScopeError: a count or shares that cannot be, or that disagree.
    """

    count: int | None = None
    _: KW_ONLY
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.count is not None and not _is_count(self.count):
            raise _error(
                "the count of a replica scope must be a whole number, 1 or more",
                details=[f"count is {self.count!r}"],
                way_out="Write replica(2) for two replicas, or replica() for as many as the devices allow.",
            )
        if self.shares is not None:
            object.__setattr__(self, "shares", _checked_shares(self.shares, self.count))
            object.__setattr__(self, "count", len(self.shares))

    @property
    def identity(self) -> Hashable:
        return "replica"

    def opened_at(self, line: Line) -> Opened:
        shares = None if self.shares is None else tuple(self.shares)
        return Opened("", "replica", "", "", line, count=self.count, shares=shares)


@dataclass(frozen=True, eq=False)
class stage(Scope):
    """The next pipeline stage.

    Args:
      devices: how many devices the stage takes in each replica, or which.
      name: opening a stage of the same name again continues that stage.
    Raises:
      ScopeError: devices or a name that cannot be.
    """

    devices: int | VirtualDevice = 1
    _: KW_ONLY
    name: str | None = None

    def __post_init__(self) -> None:
        if not _is_count(self.devices) and not isinstance(self.devices, VirtualDevice):
            raise _error(
                "the devices of a stage must be a whole number, 1 or more, or a VirtualDevice",
                details=[f"devices is {self.devices!r}"],
                way_out="Write stage() for one device, stage(2) for two, or pass a VirtualDevice.",
            )
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise _error(
                "the name of a stage must be a string that is not empty",
                details=[f"name is {self.name!r}"],
                way_out="Write stage(name='encoder'), or leave the name out.",
            )

    @property
    def identity(self) -> Hashable:
        return self if self.name is None else self.name

    def opened_at(self, line: Line) -> Opened:
        return Opened("", "stage", self.name or "", "", line, devices=self.devices)


@dataclass(frozen=True)
class NumberedStage(Scope):
    """A stage whose place in the pipeline `annotate` has given.

    Inside another numbered stage it takes over until it closes: a layer's own annotation counts for more than that of
    the layer around it.
    """

    index: int
    line: Line

    @property
    def identity(self) -> Hashable:
        return self.index

    def opened_at(self, line: Line) -> Opened:
        return Opened("", "stage", f"stage {self.index}", "", self.line, index=self.index)


@contextmanager
def recording(on_open: Callable[[Opened], None] = lambda opened: None) -> Iterator[Recording]:
    """Records the scopes that this thread opens while one step is traced into one FuncGraph.

    Begin it either before that graph is made or inside it.

    Args:
      on_open: told each subgroup when it is first opened.
    Raises:
      ScopeError: a scope is still open at the end.
    """
    record = Recording(tf.compat.v1.get_default_graph(), on_open)
    token = _active.set(record)
    try:
        yield record
        still_open = [str(opened) for opened in record.stack]
        if still_open:
            rule, way_out = "the step ended with a scope still open", "Open scopes with `with`, which closes them."
            raise ScopeError(rule, scope=still_open, way_out=way_out)
    finally:
        _active.reset(token)


@contextmanager
def paused() -> Iterator[None]:
    """Scopes opened inside do nothing: a recomputed forward belongs to the backward of where it first ran."""
    token = _active.set(None)
    try:
        yield
    finally:
        _active.reset(token)


@contextmanager
def as_made_in(tensor: Any) -> Iterator[None]:
    """Operations made inside carry the key of the scope that a tensor was made in, also where scopes are paused."""
    if tf.executing_eagerly() or ATTRIBUTE not in tensor.op.node_def.attr:
        yield
        return
    graph = tf.compat.v1.get_default_graph()
    with graph._attr_scope({ATTRIBUTE: tensor.op.node_def.attr[ATTRIBUTE]}):
        yield


_active: ContextVar[Recording | None] = ContextVar("whale_recording", default=None)


class _Entry(NamedTuple):
    """One scope on the stack; `opened` and `stamp` are None where entering it had no effect."""

    scope: Scope
    opened: Opened | None = None
    stamp: AbstractContextManager[Any] | None = None


class Recording:
    """The scopes of one trace.

    Args:
      around: the default graph when it began: the step's own graph, or the one that the step's graph is made in.
      on_open: told each subgroup when it is first opened.
    """

    def __init__(self, around: tf.Graph, on_open: Callable[[Opened], None]) -> None:
        self._around = around
        self._on_open = on_open
        self._known: dict[Hashable, Opened] = {}
        self._entries: list[_Entry] = []

    @property
    def opened(self) -> tuple[Opened, ...]:
        """Every subgroup, in order of first opening."""
        return tuple(self._known.values())

    @property
    def stack(self) -> tuple[Opened, ...]:
        """What is open now, innermost first."""
        return tuple(entry.opened for entry in reversed(self._entries) if entry.opened is not None)

    def open(self, scope: Scope) -> None:
        """Enters a scope: ops made from here on carry its key."""
        graph = tf.compat.v1.get_default_graph()
        # Keras 3.15 calls layers to infer their shapes in a graph with this name, which nothing runs.
        if tf.executing_eagerly() or graph.name.startswith("scratch_graph"):
            self._entries.append(_Entry(scope))
            return
        here, stack = scope.opened_at(user_line()), self.stack
        if not self._is_step(graph):
            if stack and here.index is not None and here.index == stack[0].index:
                self._entries.append(_Entry(scope))
                return
            raise _apart_error(here, graph)
        if here.kind == "split" and any(entry.scope is scope and entry.opened for entry in self._entries):
            self._entries.append(_Entry(scope))
            return
        parent = _parent_of(here, stack)
        key = f"{_LETTERS[here.kind]}{sum(opened.kind == here.kind for opened in self._known.values())}"
        identity: Hashable = (parent, type(scope), scope.identity)
        joined = self._known[identity].joined(here) if identity in self._known else None
        if joined is not None:
            self._known[identity] = joined
        elif identity in self._known:
            identity = (parent, type(scope), scope)  # the plan refuses the two, with both their lines
        if identity not in self._known:
            self._known[identity] = replace(here, key=key, parent=parent)
            self._on_open(self._known[identity])
        opened = self._known[identity]
        if opened.devices != here.devices:
            raise _error(
                f"{here.label} is opened again with other devices",
                details=[f"devices was {opened.devices}, and is {here.devices} now"],
                scope=str(opened),
                way_out="Give the same devices each time, or another name for another stage.",
            )
        value = attr_value_pb2.AttrValue(s=opened.key.encode())
        stamp = graph._attr_scope({ATTRIBUTE: value})  # private API, tried with TensorFlow 2.21
        stamp.__enter__()
        self._entries.append(_Entry(scope, opened, stamp))

    def close(self, scope: Scope, *, failed: bool) -> None:
        """Leaves a scope; with `failed`, an error is on its way out, and what it skipped is closed too."""
        depth = next((i for i in reversed(range(len(self._entries))) if self._entries[i].scope is scope), None)
        if depth is None:
            if not failed:
                rule = f"{scope.opened_at(user_line()).label} is closed, but is not open"
                raise _error(rule, way_out="Open scopes with `with`, inside the step.")
            return
        closed, self._entries[depth:] = self._entries[depth:], []
        for entry in reversed(closed):
            if entry.stamp is not None:
                entry.stamp.__exit__(None, None, None)
        outer, *inner = [entry.opened for entry in closed]
        skipped = [opened for opened in reversed(inner) if opened is not None]
        if outer is not None and skipped and not failed:
            raise _error(
                f"{outer.label} is closed before {', '.join(opened.label for opened in skipped)} inside it",
                scope=[str(opened) for opened in (*skipped, outer)],
                way_out="Close scopes in the reverse order of opening; `with` does.",
            )

    def _is_step(self, graph: tf.Graph) -> bool:
        if self._around.building_function:
            return graph is self._around
        return getattr(graph, "outer_graph", None) is self._around


def _parent_of(here: Opened, stack: Sequence[Opened]) -> str:
    """The key of the scope that `here` is opened in, where `stack` is what is open, innermost first."""
    parents = [outer for outer in stack if here.index is None or outer.index is None]
    for outer in parents:
        if outer.kind == here.kind or (outer.kind == "split" and here.kind != "whole"):
            raise _nesting_error(here, outer)
    return parents[0].key if parents else ""


def _nesting_error(here: Opened, outer: Opened) -> ScopeError:
    if outer.kind == "split":
        way_out = "Close the split first." if here.kind == "split" else f"Open the {here.kind} around the split."
    elif here.kind == "replica":
        way_out = "Keep one of the two: replica(2) in replica(2) would be replica(4)."
    elif here.index is None and outer.index is None:
        way_out = "Close the outer stage first: stages follow one another."
    else:
        way_out = "Say the stage of a layer once: with `annotate`, or with a `with` around or inside its call."
    another = f"another {here.kind}" if outer.kind == here.kind else f"a {outer.kind}"
    rule = f"{here.label} is opened inside {another} scope"
    return _error(rule, scope=str(outer), way_out=way_out)


def _apart_error(here: Opened, graph: tf.Graph) -> ScopeError:
    if isinstance(graph, control_flow_v2_func_graphs.ControlFlowFuncGraph):
        rule = f"{here.label} is opened inside control flow, which is one op of one stage"
        details = [f"TensorFlow traces '{graph.name}' apart: the body of a loop, or a branch"]
        way_out = f"Open the {here.kind} around the loop or branch, or write a Python loop, which is unrolled."
    else:
        rule = f"{here.label} is opened inside a function that is traced apart from the step"
        details = [f"TensorFlow keeps the trace of '{graph.name}' and would not open the scope again"]
        way_out = f"Open the {here.kind} around the call, or take the tf.function away: the step is traced whole."
    if here.index is None:
        return _error(rule, details=details, way_out=way_out)
    way_out = "Annotate the layer that holds the loop, branch or tf.function."
    return _error(rule, details=details, scope=str(here), way_out=way_out)


def _error(rule: str, *, details: Sequence[str] = (), scope: Sequence[str] | str = (), way_out: str) -> ScopeError:
    """With the line that the user is at."""
    return ScopeError(rule, details=details, at=[user_line()], scope=scope, way_out=way_out)


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _checked_shares(shares: Sequence[float], count: int | None) -> tuple[float, ...]:
    """The shares as floats, all positive and finite, and as many as `count` says."""
    values = shares if isinstance(shares, Sequence) and not isinstance(shares, str | bytes) else ()
    wrong = [
        f"shares[{i}] is {share!r}"
        for i, share in enumerate(values)
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 < share <= sys.float_info.max
    ]
    if wrong or not values:
        raise _error(
            "the shares of a replica scope must be finite numbers above 0, one per replica",
            details=wrong or [f"shares is {shares!r}"],
            way_out="Write replica(shares=[2, 1]) to give the first of two replicas two thirds of the batch.",
        )
    if count is not None and count != len(values):
        raise _error(
            "count and shares of a replica scope must agree",
            details=[f"count is {count}, and there are {len(values)} shares: {list(values)}"],
            way_out=f"Give {count} shares, or leave the count out.",
        )
    return tuple(float(share) for share in values)
