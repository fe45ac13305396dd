"""Wrong rules, made from the right ones by code: each changes one thing that the table says of one kind of operation.

    Mutation   a change of a Rule, or of what an answer says: the next dim, a sum in the place of a maximum
    Mutant     a mutation of one op; of all that can be made, a seed draws which are tried

A mutation never takes a claim away only: what a rule does not claim is computed once, which is slower and not wrong.
The powers of a rule are left alone. They are read where a value that is no Partial has a degree, which only sums have
that are accepted as each part has them: there is no one device to compare these with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import pytest

from whale_tf.ir.sharding import SUMS, WHOLE, Partial, Reduction, Split, Value
from whale_tf.plan import answers, rules
from whale_tf.plan.kinds import WHOLE_DIM, Kind, Rule, TypedNode
from whale_tf.plan.local import Answer, Local, Operation

NEW = "Z"  # a letter that no rule has
OTHER: Mapping[Reduction, Reduction] = MappingProxyType(
    {
        Reduction.SUM: Reduction.MAX,
        Reduction.MAX: Reduction.SUM,
        Reduction.MIN: Reduction.MAX,
        Reduction.PROD: Reduction.SUM,
        Reduction.ALL: Reduction.ANY,
        Reduction.ANY: Reduction.ALL,
    }
)


# Of rules. Each gives the rule itself where there is nothing to change.


def swap_letters(rule: Rule) -> Rule:
    """The first two letters of a result change places."""
    name = rule.outputs[0] if rule.outputs else ""
    at = [position for position, letter in enumerate(name) if letter != WHOLE_DIM][:2]
    if len(at) < 2:
        return rule
    letters = list(name)
    letters[at[0]], letters[at[1]] = letters[at[1]], letters[at[0]]
    return replace(rule, outputs=("".join(letters), *rule.outputs[1:]))


def pass_a_whole_dim(rule: Rule) -> Rule:
    """A dim that must be whole passes, as if the operation went element by element: a running sum, a softmax."""
    inputs, outputs = list(rule.inputs), list(rule.outputs)
    for operand, name in enumerate(rule.inputs):
        for dim, letter in enumerate(name):
            alike = [index for index, other in enumerate(rule.outputs) if other[dim : dim + 1] == WHOLE_DIM]
            if letter == WHOLE_DIM and alike and operand not in rule.shapes:
                inputs[operand] = name[:dim] + NEW + name[dim + 1 :]
                for index in alike:
                    outputs[index] = rule.outputs[index][:dim] + NEW + rule.outputs[index][dim + 1 :]
                return replace(rule, inputs=tuple(inputs), outputs=tuple(outputs))
    return rule


def reduce_what_passes(rule: Rule) -> Rule:
    """The first letter of a result is summed in the place of passed."""
    name = rule.outputs[0] if rule.outputs else ""
    for dim, letter in enumerate(name):
        if letter != WHOLE_DIM:
            return replace(rule, outputs=(name[:dim] + WHOLE_DIM + name[dim + 1 :], *rule.outputs[1:]))
    return rule


def pass_what_is_reduced(rule: Rule) -> Rule:
    """A letter that is reduced takes the place of one that passes, or of the dim that is left of it."""
    name = rule.outputs[0] if rule.outputs else ""
    reduced = [letter for letters in rule.inputs for letter in letters if letter not in name + WHOLE_DIM]
    if not reduced or not name:
        return rule
    return replace(rule, outputs=(reduced[0] + name[1:], *rule.outputs[1:]))


def reduce_otherwise(rule: Rule) -> Rule:
    """A sum is a maximum, a maximum a sum."""
    return replace(rule, reduction=OTHER[rule.reduction]) if _reduces(rule) and rule.reduction else rule


def mean_for_sum(rule: Rule) -> Rule:
    """A mean has the degree of a sum, or a sum that of a mean."""
    return replace(rule, mean=not rule.mean) if _reduces(rule) and rule.reduction is Reduction.SUM else rule


def linear_too(rule: Rule) -> Rule:
    """An operation is linear in an operand that it is not linear in."""
    return replace(rule, linear=rule.linear | set(_others(rule)[:1]))


def additive_too(rule: Rule) -> Rule:
    """An operand that is none is a term of a sum."""
    return replace(rule, additive=rule.additive | set(_others(rule)[:1]))


def linear_for_additive(rule: Rule) -> Rule:
    """Terms of a sum are factors of a product."""
    return replace(rule, linear=rule.linear | rule.additive, additive=frozenset())


def additive_for_linear(rule: Rule) -> Rule:
    """Factors of a product are terms of a sum; of a single operand both say the same."""
    return rule if len(rule.linear) < 2 else replace(rule, linear=frozenset(), additive=rule.additive | rule.linear)


def increasing(rule: Rule) -> Rule:
    """It keeps the order of numbers, so that a maximum passes."""
    return replace(rule, increasing=True)


def _reduces(rule: Rule) -> bool:
    return any(letter not in name + WHOLE_DIM for name in rule.outputs for term in rule.inputs for letter in term)


def _others(rule: Rule) -> list[int]:
    """The operands that it is said to be neither linear in nor to add."""
    positions = range(len(rule.inputs))
    return [each for each in positions if each not in rule.linear | rule.additive | rule.shapes]


# Of the results of an answer.


def next_dim(value: Value) -> Value:
    """The dim behind the one that is cut, or before it."""
    state = value.state
    if not isinstance(state, Split):
        return value
    return replace(value, state=replace(state, dim=state.dim - 1 if state.dim else 1))


def without_outer(value: Value) -> Value:
    """A dim that is cut within blocks is cut through."""
    return replace(value, state=replace(value.state, outer=1)) if isinstance(value.state, Split) else value


def without_ahead(value: Value) -> Value:
    """Positions that a part counts from its first example are the true ones."""
    return replace(value, state=value.state.bare) if isinstance(value.state, Split) else value


def higher_degree(value: Value) -> Value:
    """The parts' numbers have one more factor of their share."""
    return replace(value, degree=value.degree + 1) if isinstance(value.state, Split | Partial) else value


def sum_for_pieces(value: Value) -> Value:
    """Pieces are terms of a sum."""
    return replace(value, state=SUMS) if _is_cut(value) else value


def whole_for_pieces(value: Value) -> Value:
    """Every part has what is a piece."""
    return replace(value, state=WHOLE) if _is_cut(value) else value


def whole_for_sum(value: Value) -> Value:
    """Every part has what is a term of a sum."""
    return replace(value, state=WHOLE) if isinstance(value.state, Partial) else value


def maximum_for_sum(value: Value) -> Value:
    """A sum is a maximum, a maximum a sum."""
    return replace(value, state=Partial(OTHER[value.state.op])) if isinstance(value.state, Partial) else value


def _is_cut(value: Value) -> bool:
    return isinstance(value.state, Split)


OF_RULES: tuple[Callable[[Rule], Rule], ...] = (
    swap_letters,
    pass_a_whole_dim,
    reduce_what_passes,
    pass_what_is_reduced,
    reduce_otherwise,
    mean_for_sum,
    linear_too,
    additive_too,
    linear_for_additive,
    additive_for_linear,
    increasing,
)
OF_ANSWERS: tuple[Callable[[Value], Value], ...] = (
    next_dim,
    without_outer,
    without_ahead,
    higher_degree,
    sum_for_pieces,
    whole_for_pieces,
    whole_for_sum,
    maximum_for_sum,
)


# What is tried.


@dataclass(frozen=True)
class Mutant:
    """One wrong rule: prints as `Softmax: pass_a_whole_dim`.

    Attributes:
      op: the kind of operation.
      change: what is changed of its rule, or of each result of its answer.
      answer: whether it has an answer of its own.
    """

    op: str
    change: Callable[[Any], Any]
    answer: bool

    def __str__(self) -> str:
        return f"{self.op}: {self.change.__name__}{' of the answer' if self.answer else ''}"

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, the tables have it."""
        with pytest.MonkeyPatch.context() as patch:
            if self.answer:
                changed = {self.op: self._answer(answers._ANSWERS[self.op])}
                patch.setattr(answers, "_ANSWERS", {**answers._ANSWERS, **changed})
            else:
                patch.setattr(rules, "KINDS", {**rules.KINDS, self.op: Kind(self._rule(rules.KINDS[self.op]))})
            yield

    def _rule(self, kind: Kind) -> Callable[[TypedNode], Rule | None]:
        def changed(typed: TypedNode) -> Rule | None:
            found = kind.rule(typed) if kind.rule is not None else None
            return None if found is None else self.change(kind.completed(found, typed.inputs))

        return changed

    def _answer(self, answer: Callable[[Operation], Answer]) -> Callable[[Operation], Answer]:
        def changed(operation: Operation) -> Answer:
            found = answer(operation)
            return found if isinstance(found, str) else Local(tuple(map(self.change, found.results)), found.uses)

        return changed


def mutants_of(rules_of: Mapping[str, Iterable[Rule]], values_of: Mapping[str, Iterable[Value]]) -> list[Mutant]:
    """All that change a rule, or a result of an answer.

    Args:
      rules_of: for each op the rules that it has at some shapes.
      values_of: for each op with an answer of its own, results that it gives.
    """
    of_rules = [
        Mutant(op, change, answer=False)
        for op, found in sorted(rules_of.items())
        for change in OF_RULES
        if any(change(rule) != rule for rule in found)
    ]
    of_answers = [
        Mutant(op, change, answer=True)
        for op, found in sorted(values_of.items())
        for change in OF_ANSWERS
        if any(change(value) != value for value in found)
    ]
    return [*of_rules, *of_answers]


def in_random_order(mutants: Iterable[Mutant], seed: int) -> list[Mutant]:
    """The same ones, as a seed draws them."""
    drawn = list(mutants)
    random.Random(seed).shuffle(drawn)
    return drawn


@contextmanager
def answers_noted() -> Iterator[dict[str, list[Value]]]:
    """Notes while it lasts the results of the answers, by op."""
    found: dict[str, list[Value]] = {}
    special = answers.special

    def noting(operation: Operation) -> Answer | None:
        answer = special(operation)
        if isinstance(answer, Local) and operation.node.op in answers._ANSWERS:
            found.setdefault(operation.node.op, []).extend(answer.results)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "special", noting)
        yield found
