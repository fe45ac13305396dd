r"""Stages and splits for models that the user cannot edit.

    annotate(model, {"embedding|layers/[0-5]": 0, r"layers/\d+|head": 1})

    path             pattern that matches first      its call runs in
    embedding        embedding|layers/[0-5]          stage 0
    layers/5         embedding|layers/[0-5]          stage 0
    layers/5/dense   none                            stage 0, since layers/5 calls it
    layers/6         layers/\d+|head                 stage 1

A `whale.split()` in the place of a number cuts what the layer's call computes; of stages and splits each is matched
for itself, so that a layer may have both.

A path is made of the names of Keras layers, or the attributes and indices of a tf.Module, from the model down and
without the model's own name: `encoder/block_1/dense`, `layers/0/w`. The operations of a functional Keras model (`add`,
`reshape`) have paths too.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeVar

import keras
import tensorflow as tf

from whale_tf.annotate.lines import user_line
from whale_tf.annotate.scopes import NumberedStage, Scope
from whale_tf.annotate.split import split
from whale_tf.errors import ScopeError

Model = TypeVar("Model")
LISTED_PATHS = 10


def annotate(model: Model, scopes: Mapping[str, int | split]) -> Model:
    """Puts the layers of a model into pipeline stages, in the order of the stages' numbers, and cuts layers.

    A pattern must match a whole path. What a layer calls is in its stage, unless it has been annotated itself: the
    innermost annotation counts. A layer is cut with all that it calls. Where several patterns match one layer, the
    first counts. A tf.Module that cannot be called gives its stage to what it holds. Annotating a model again replaces
    what was said before; clones and loaded copies of a Keras model are not annotated. The model computes the same as
    before, and has stages only inside a whale function.

    A stage has one device, unless a strategy says otherwise: `Strategy(devices=((0, (1, 2)),))` gives stage 1 two.

    Args:
      model: a Keras model or layer, or a tf.Module.
      scopes: regular expression on the path -> stage number, or `whale.split()`; the numbers are 0, 1, ... without a
        gap.
    Returns:
      The model itself.
    Raises:
      ScopeError: nothing that has layers, a pattern that cannot be read or that decides nothing, numbers with a gap.
    """
    if not isinstance(model, keras.Operation | tf.Module):
        raise ScopeError(
            "annotate takes a Keras model or layer, or a tf.Module",
            details=[f"this is a {type(model).__name__}"],
            at=[user_line()],
            way_out="Pass the model itself, or open whale.stage() in the step.",
        )
    splits = {pattern: scope for pattern, scope in scopes.items() if isinstance(scope, split)}
    stages = {pattern: number for pattern, number in scopes.items() if not isinstance(number, split)}
    if stages or not splits:
        _check_numbers(stages)
    places = list(_places(model))
    line = user_line()
    opened: dict[int, list[Scope]] = {}
    numbered = {pattern: NumberedStage(int(number), line) for pattern, number in stages.items()}
    for of_kind in (numbered, splits):
        patterns = _compiled(of_kind)
        chosen = _chosen(places, patterns)
        _check_all_used(patterns, places, set(chosen.values()))
        for layer, pattern in chosen.items():
            opened.setdefault(layer, []).append(of_kind[pattern])
    for place in places:
        _restore(place.layer)
    for layer in {id(place.layer): place.layer for place in places}.values():
        if id(layer) in opened:
            _enclose(layer, _Together(opened[id(layer)]))
    return model


class _Together:
    """Scopes that are opened one in the other."""

    def __init__(self, scopes: Sequence[Scope]) -> None:
        self.scopes = scopes

    def __enter__(self) -> None:
        for scope in self.scopes:
            scope.__enter__()

    def __exit__(self, *error: Any) -> None:
        for scope in reversed(self.scopes):
            scope.__exit__(*error)


@dataclass(frozen=True)
class _Place:
    """Where a layer stands in the model; one that is used twice stands in two places."""

    path: str
    parent: str
    layer: Any


def _check_numbers(stages: Mapping[str, int]) -> None:
    if not stages:
        raise ScopeError(
            "annotate was given no pattern",
            at=[user_line()],
            way_out="Write annotate(model, {'encoder': 0, 'decoder': 1}), or {'decoder': whale.split()}.",
        )
    wrong = [
        f"{pattern!r}: {number!r}"
        for pattern, number in stages.items()
        if not isinstance(number, Integral) or isinstance(number, bool) or number < 0
    ]
    if wrong:
        raise ScopeError(
            "stage numbers must be whole numbers, 0 or more",
            details=wrong,
            at=[user_line()],
            way_out="Count the stages 0, 1, 2, ... in the order in which data passes them.",
        )
    given = sorted(set(stages.values()))
    missing = sorted(set(range(given[-1])) - set(given))
    if missing:
        raise ScopeError(
            "stage numbers must have no gap",
            details=[f"given: {', '.join(map(str, given))}", f"missing: {', '.join(map(str, missing))}"],
            at=[user_line()],
            way_out=f"Count the {len(given)} stages from 0 to {len(given) - 1}.",
        )


def _compiled(stages: Mapping[str, object]) -> dict[str, re.Pattern[str]]:
    patterns, wrong = {}, []
    for pattern in stages:
        try:
            patterns[pattern] = re.compile(pattern)
        except re.error as error:
            wrong.append(f"{pattern!r}: {error}")
    if wrong:
        raise ScopeError(
            "a pattern of annotate is not a regular expression",
            details=wrong,
            at=[user_line()],
            way_out="Escape what is meant literally, as in 'block\\(1\\)' or with re.escape.",
        )
    return patterns


def _places(owner: Any, parent: str = "", around: tuple[int, ...] = ()) -> Iterator[_Place]:
    """Every layer under `owner`, parents first."""
    for name, layer in _children(owner):
        if id(layer) in (*around, id(owner)):
            continue
        path = f"{parent}/{name}" if parent else name
        yield _Place(path, parent, layer)
        yield from _places(layer, path, (*around, id(owner)))


def _children(owner: Any) -> Iterator[tuple[str, Any]]:
    """The layers that one layer holds itself, each once, with their names in it."""
    if isinstance(owner, tf.Module):
        for attribute in sorted(vars(owner)):
            if not attribute.startswith("_self_"):  # TensorFlow's own record of the other attributes
                yield from _held(attribute, vars(owner)[attribute])
        return
    operations = owner.operations if isinstance(owner, keras.Function) else []
    layers = getattr(owner, "_layers", [])  # private API, tried with Keras 3.15: Layer has no public one
    for layer in {id(layer): layer for layer in [*operations, *layers]}.values():
        if isinstance(layer, keras.Operation) and not isinstance(layer, keras.layers.InputLayer):
            yield layer.name, layer


def _held(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The layers in an attribute: the value itself, or what its lists and dicts hold."""
    if isinstance(value, keras.Operation | tf.Module):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _held(f"{name}/{key}", item)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for i, item in enumerate(value):
            yield from _held(f"{name}/{i}", item)


def _chosen(places: Sequence[_Place], patterns: Mapping[str, re.Pattern[str]]) -> dict[int, str]:
    """For the id of each layer that gets a stage, the pattern that decides it."""
    order = {pattern: i for i, pattern in enumerate(patterns)}
    chosen: dict[int, str] = {}
    handed_down: dict[str, str] = {}
    for place in places:
        match = next((pattern for pattern, compiled in patterns.items() if compiled.fullmatch(place.path)), None)
        pattern = match or handed_down.get(place.parent)
        if pattern is None:
            continue
        if not callable(place.layer):
            handed_down[place.path] = pattern
            continue
        chosen[id(place.layer)] = min(pattern, chosen.get(id(place.layer), pattern), key=order.__getitem__)
    return chosen


def _check_all_used(patterns: Mapping[str, re.Pattern[str]], places: Sequence[_Place], used: set[str]) -> None:
    """Refuses patterns that match nothing, and those that only match what an earlier one has taken."""
    paths = list(dict.fromkeys(place.path for place in places))
    idle = [pattern for pattern in patterns if pattern not in used]
    unmatched = [pattern for pattern in idle if not any(patterns[pattern].fullmatch(path) for path in paths)]
    if unmatched:
        close = [path for pattern in unmatched for path in difflib.get_close_matches(pattern, paths, LISTED_PATHS, 0.5)]
        listed = list(dict.fromkeys([*close, *paths]))[:LISTED_PATHS]
        more = f" and {len(paths) - len(listed)} more" if len(paths) > len(listed) else ""
        raise ScopeError(
            "a pattern of annotate matches no layer",
            details=[*map("{!r} matches nothing".format, unmatched), f"there are: {', '.join(listed)}{more}"],
            at=[user_line()],
            way_out="A pattern must match a whole path: write 'encoder/.*' for all that is under encoder.",
        )
    if idle:
        raise ScopeError(
            "a pattern of annotate decides no layer",
            details=[*map("{!r} matches only what an earlier one has taken, or what cannot be called".format, idle)],
            at=[user_line()],
            way_out="The first pattern that matches counts: put the narrower one first, or narrow the earlier one.",
        )


class _Enclosed:
    """A layer's method that runs inside a scope, and looks like the method otherwise."""

    def __init__(self, method: Callable[..., Any], scope: AbstractContextManager[Any], replaced: Any) -> None:
        functools.update_wrapper(self, method)
        self.method, self.scope, self.replaced = method, scope, replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.scope:
            return self.method(*args, **kwargs)


_KERAS_METHODS = ("call", "quantized_call")  # what Operation.__call__ calls, Keras 3.15


def _enclose(layer: Any, scope: AbstractContextManager[Any]) -> None:
    """Makes calls of a layer run inside a scope.

    A Keras layer gets methods of its own, which `Layer.__call__` finds and saving does not. Python looks for a
    module's `__call__` only in its class, so a tf.Module gets a class of its own.
    """
    if isinstance(layer, keras.Operation):
        for name in _KERAS_METHODS:
            vars(layer)[name] = _Enclosed(getattr(layer, name), scope, vars(layer).get(name))
        return
    kind: Any = type(layer)
    original = kind.__call__

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with scope:
            return original(self, *args, **kwargs)

    looks = {name: getattr(kind, name) for name in ("__doc__", "__module__", "__qualname__")}
    layer.__class__ = type(kind)(kind.__name__, (kind,), {**looks, "__call__": call, "_whale_replaced": kind})


def _restore(layer: Any) -> None:
    """Takes back what `_enclose` did, if it did."""
    if isinstance(layer, tf.Module):
        layer.__class__ = vars(type(layer)).get("_whale_replaced", type(layer))
        return
    for name in _KERAS_METHODS:
        method = vars(layer).get(name)
        if isinstance(method, _Enclosed):
            del vars(layer)[name]
            if method.replaced is not None:
                vars(layer)[name] = method.replaced
