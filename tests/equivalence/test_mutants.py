"""Is the check sharp? Wrong rules, drawn by a seed from all that can be made of the tables, are noticed.

A mutant is killed where a value is found wrong, where a step is refused that is right, or where planning or running it
fails. One that survives is *equivalent*, so that no program can tell it from the right one, in two events only:

- all that its rule claims is true, as tests/plan/rule_checks.py compares it with TensorFlow in each case it changes;
- no step is changed by it, and in each case a letter stands for dims of different sizes, so that it is never obeyed.

One that changes nothing that is said of any step is not tried at all: it is of a dim that no step cuts, as the rows of
a matrix that is inverted. Such are told apart, and the steps must reach nearly all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import tensorflow as tf

import whale_tf as whale
from tests.equivalence.corpus import Subject, forms, operations, programs, running
from tests.equivalence.mutants import Mutant, answers_noted, in_random_order, mutants_of
from tests.plan.rule_cases import Case
from tests.plan.rule_checks import rule_for, run, wrong_letters, wrong_numbers
from tests.plan.test_rules import CASES
from whale_tf.errors import InternalError, ValueCheckError, WhaleError
from whale_tf.ir.sizes import Sizes
from whale_tf.parallelize import CHECK_VARIABLE
from whale_tf.plan.rules import Rule
from whale_tf.plan.states import States

SEED = 11
TRIED, KILLED, UNREACHED = 100, 95, 10
PROGRAMS, ONE_FORM_IN = 40, 6
RUNS = 4  # of the steps that a mutant changes, so many are run at most


@dataclass
class Corpus:
    """Steps that run by the right rules, and what those say of them.

    Attributes:
      shared: random programs and forms.
      alone: for each op that was asked for, its steps of one operation.
      states: for each step its states by the right rules.
    """

    shared: Sequence[Subject]
    alone: dict[str, list[Subject]] = field(default_factory=dict)
    states: dict[int, States] = field(default_factory=dict)

    def with_op(self, op: str) -> list[Subject]:
        """The steps that have an operation of this kind, small ones first."""
        if op not in self.alone:
            self.alone[op] = list(operations(op))
        found = [*self.alone[op], *(each for each in self.shared if each.sized and op in _ops(each.sized))]
        for each in found:
            self.states.setdefault(id(each), each.states())
        return found


def _ops(sizes: Sizes) -> set[str]:
    """The kinds of operation in a step, and in what it calls."""
    return {node.op for node in sizes.graph}.union(*map(_ops, sizes.bodies.values()))


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: prints as `killed: value, in Softmax [8,5]`.

    Attributes:
      how: what killed it; empty if nothing did.
      where: the step.
      changed: how many steps it changes the states of.
    """

    how: str
    where: str = ""
    changed: int = 0

    def __str__(self) -> str:
        return f"killed: {self.how}, in {self.where}" if self.how else f"survived: {self.changed} steps are changed"


def verdict_on(mutant: Mutant, corpus: Corpus) -> Verdict:
    """Runs the steps that a mutant changes, until one notices."""
    subjects = corpus.with_op(mutant.op)
    with mutant.in_place():
        changed, refused = [], ""
        for subject in subjects:
            try:
                if _told(subject.states()) != _told(corpus.states[id(subject)]):
                    changed.append(subject)
            except Exception as error:
                refused = refused or f"{_how(error)}, in {subject.name}"
        for subject in changed[:RUNS]:
            try:
                subject.run()
            except Exception as error:
                return Verdict(_how(error), subject.name)
    how, _, where = refused.partition(", in ")
    return Verdict(how, where, len(changed))


def _told(states: States) -> tuple[Any, ...]:
    """What the passes obey."""
    return states.known, states.level, states.uses, states.bodies, states.markers, states.accepted


def _how(error: Exception) -> str:
    if isinstance(error, ValueCheckError):
        return "a value is wrong"
    if isinstance(error, WhaleError) and not isinstance(error, InternalError):
        return "it is refused"
    return f"it fails with {type(error).__name__}"


def changed_rules(mutant: Mutant) -> list[tuple[Case, Rule]]:
    """The cases of the op in which the mutant has another rule, with that rule."""
    if mutant.answer:
        return []
    cases = [given for given in CASES if given.op == mutant.op]
    right = [rule_for(given) for given in cases]
    with mutant.in_place():
        wrong = [rule_for(given) for given in cases]
    return [(given, its) for given, before, its in zip(cases, right, wrong, strict=True) if before != its]


def why_equivalent(mutant: Mutant, verdict: Verdict) -> str:
    """Why no program can tell a mutant from the right rule; empty if nothing says so."""
    changed = changed_rules(mutant)
    if changed and not verdict.changed and all(contradicts_sizes(*each) for each in changed):
        return "a letter stands for dims of different sizes in each case, and such a claim is never obeyed"
    try:
        true = changed and not any(wrong_letters(*each) or wrong_numbers(*each) for each in changed)
    except (AssertionError, IndexError, ValueError, tf.errors.OpError):  # not even the ranks or the range of operands
        true = False
    return "TensorFlow does all that it claims, in each case" if true else ""


def contradicts_sizes(given: Case, rule: Rule) -> bool:
    """Whether a letter stands for dims of different sizes."""
    found: dict[str, set[int]] = {}
    shapes = [each.shape for each in (*given.inputs, *run(given, given.inputs))]
    for letters, shape in zip((*rule.inputs, *rule.outputs), shapes, strict=True):
        for letter, size in zip(letters, shape, strict=True):
            found.setdefault(letter, set()).add(size)
    return any(len(sizes) > 1 for letter, sizes in found.items() if letter != ".")


def drawn(shared: Sequence[Subject]) -> Iterator[Mutant]:
    """All mutants of rules that have a case, and of answers that the corpus asks for, in the order of the seed."""
    of_rules: dict[str, list[Any]] = {}
    for given in CASES:
        of_rules.setdefault(given.op, []).append(rule_for(given))
    with answers_noted() as of_answers:
        for subject in shared:
            subject.states()
    found = in_random_order(mutants_of(of_rules, of_answers), SEED)
    yield from (mutant for mutant in found if mutant.answer or changed_rules(mutant))


@pytest.mark.long
def test_wrong_rules_are_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(CHECK_VARIABLE, "values")
    whale.init(devices=2)
    corpus = Corpus(running([*programs(PROGRAMS, SEED), *forms(ONE_FORM_IN)]))
    equivalent: dict[Mutant, str] = {}
    verdicts: dict[Mutant, Verdict] = {}
    unreached: list[Mutant] = []
    for mutant in drawn(corpus.shared):
        if len(verdicts) == TRIED:
            break
        verdict = verdict_on(mutant, corpus)
        why = "" if verdict.how else why_equivalent(mutant, verdict)
        if why:
            equivalent[mutant] = why
        elif not verdict.how and not verdict.changed:
            unreached.append(mutant)
        else:
            verdicts[mutant] = verdict
    with capsys.disabled():
        print("\n" + "\n".join(_report(verdicts, equivalent, unreached)))
    assert len(unreached) <= UNREACHED
    assert sum(bool(verdict.how) for verdict in verdicts.values()) >= KILLED


def _report(
    verdicts: Mapping[Mutant, Verdict], equivalent: Mapping[Mutant, str], unreached: Sequence[Mutant]
) -> Iterator[str]:
    for how, count in Counter(verdict.how or "survived" for verdict in verdicts.values()).most_common():
        yield f"{count} mutants: {how}"
    yield from (f"{mutant}: {verdict}" for mutant, verdict in verdicts.items() if not verdict.how)
    yield from (f"{mutant}: changes nothing of any step" for mutant in unreached)
    yield from (f"{mutant}: equivalent, since {why}" for mutant, why in equivalent.items())
