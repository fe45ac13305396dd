"""Makes trainings of forms, and says at which layouts each of them runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

import whale_tf as whale
from tests.equivalence.forms import Form, Model, batches, squares
from tests.equivalence.forms_losses import LOSSES
from tests.equivalence.forms_outputs import OUTPUTS
from tests.equivalence.forms_writes import WRITES, State
from tests.equivalence.harness import Case, Layout, Numbers, Scopes, Training, differences, fresh, numbers

SCHEDULES = ("1f1b", "gpipe", "zero_bubble", "interleaved")
# A micro-batch has 4 examples where the batch is divided evenly. The second width is the size of no part.
NARROW, WIDE = WIDTHS = (4, 6)
LAYOUTS = (
    Layout(replicas=2, micro_batches=2, examples=16),
    Layout(replicas=2, examples=8),
    Layout(micro_batches=4, examples=16),
    Layout(stages=2, micro_batches=2, examples=8),
    Layout(replicas=2, stages=2, micro_batches=2, examples=16),
    Layout(replicas=2, micro_batches=2, examples=13),
    Layout(replicas=2, micro_batches=2, examples=4),
)
STRIDE = 3  # from one width's layout to the other's
REPLICAS = Layout(replicas=2, examples=8)


@dataclass(frozen=True)
class Choice:
    """One form at one width under one layout: prints as `mean_of_losses-w4-r2-s1-m2-1f1b`."""

    form: Form
    width: int
    layout: Layout

    def __str__(self) -> str:
        return f"{self.form}-w{self.width}-{self.layout}"


def training_of(form: Form, width: int, scopes: Scopes) -> Training:
    """The step that has this form in it."""
    if form in LOSSES:
        return _with_loss(form, width, scopes)
    return _with_output(form, width, scopes) if form in OUTPUTS else _with_write(form, width, scopes)


def _with_loss(form: Form, width: int, scopes: Scopes) -> Training:
    """The form is what is differentiated, and the output."""
    model = Model(scopes, width, adam=form.adam)

    def step(x: tf.Tensor, y: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = form.function(model(x), y, model.net(x, tokens))
        model.update(tape, loss)
        return loss

    return Training(step, batches(scopes.examples, width), model.owners)


def _with_output(form: Form, width: int, scopes: Scopes) -> Training:
    """A usual step returns the form beside its loss."""
    model = Model(scopes, width)

    def step(x: tf.Tensor, y: tf.Tensor, tokens: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            h = model(x)
            loss = tf.reduce_mean(squares(h, y))
            found = form.function(h, y, model.net(x, tokens))
        model.update(tape, loss)
        return loss, found

    return Training(step, batches(scopes.examples, width), model.owners)


def _with_write(form: Form, width: int, scopes: Scopes) -> Training:
    """A usual step changes other state as well, by activations that are not differentiated there."""
    model, state = Model(scopes, width), State(width)

    def step(x: tf.Tensor, y: tf.Tensor, tokens: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            h = model(x)
            loss = tf.reduce_mean(squares(h, y))
            found = form.function(state, tf.stop_gradient(h), y)
        model.update(tape, loss)
        return loss, found

    return Training(step, batches(scopes.examples, width), [*model.owners, *state.owners])


def case_of(form: Form, width: int) -> Case:
    """The form as the harness takes it."""
    return Case(functools.partial(training_of, form, width), name=f"{form}-w{width}")


def check_form(choice: Choice, **options: Any) -> None:
    """Trains under the layout and on one device, and fails where a number differs; `options` are whale.function's."""
    want = one_device(choice.form, choice.width, choice.layout.examples)
    step, training = spread(choice, **options)
    got = numbers(training, taken_apart(step))
    wrong = differences(got, want, choice.form.tolerance)
    assert not wrong, f"{choice}: {len(wrong)} of {len(want)} differ\n  " + "\n  ".join(wrong)


@functools.cache
def one_device(form: Form, width: int, examples: int) -> Numbers:
    """The numbers of the plain training."""
    training = fresh(case_of(form, width), Layout(examples=examples))
    return numbers(training, taken_apart(tf.function(training.step)))


def taken_apart(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step with the tensors of ragged and sparse outputs in their place."""

    def parts(value: Any) -> Any:
        composite = isinstance(value, tf.RaggedTensor | tf.SparseTensor)
        return tf.nest.flatten(value, expand_composites=True) if composite else value

    return lambda *batch: tf.nest.map_structure(parts, step(*batch))


def spread(choice: Choice, **options: Any) -> tuple[Callable[..., Any], Training]:
    """The step under the layout, and its fresh training."""
    layout = choice.layout
    whale.init(devices=layout.replicas * layout.stages)
    training = fresh(case_of(choice.form, choice.width), layout)
    decorate = whale.function(micro_batches=layout.micro_batches, schedule=layout.schedule, **options)
    return decorate(training.step), training


def layouts_in_turn(forms: Sequence[Form], layouts: Sequence[Layout] = LAYOUTS) -> Iterator[Choice]:
    """Each form at each width under one layout, so that neighbours in the table have other layouts and schedules."""
    for i, form in enumerate(forms):
        for k, width in enumerate(WIDTHS):
            layout = layouts[(i + STRIDE * k) % len(layouts)]
            yield Choice(form, width, replace(layout, schedule=SCHEDULES[(i + k) % len(SCHEDULES)]))


def all_layouts(forms: Sequence[Form]) -> Iterator[Choice]:
    """Each form under each layout, the widths and schedules in turn."""
    for i, form in enumerate(forms):
        for k, layout in enumerate(LAYOUTS):
            width, schedule = WIDTHS[(i + k) % len(WIDTHS)], SCHEDULES[(i + k) % len(SCHEDULES)]
            yield Choice(form, width, replace(layout, schedule=schedule))


FORMS = (*LOSSES, *OUTPUTS, *WRITES)
