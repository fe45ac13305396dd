"""Steps whose numbers depend on the batch as a whole: they are those of one device, or the step is refused.

More of them, by what a loss, an output or a write is made of, are in test_forms.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

import whale_tf as whale
from tests.equivalence.cases_operations import python_in_the_step
from tests.equivalence.harness import (
    TOLERANCE,
    Case,
    Layout,
    Scopes,
    Training,
    check,
    differences,
    numbers,
    parallel,
    reference,
)
from tests.equivalence.models import classified, classifier, cross_entropies, cross_entropy, descend, variables_of

Outputs = Callable[[tf.Tensor, tf.Tensor], Any]


def root_of_the_mean(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The root of a mean is no mean of roots."""
    return tf.sqrt(tf.reduce_mean(cross_entropies(y, logits) ** 2))


def contrast(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Each example is told from all others of the batch."""
    scores = tf.matmul(logits, tf.roll(logits, 1, axis=1), transpose_b=True)
    return cross_entropy(tf.range(tf.shape(y)[0]), scores)


def mean_of_chosen(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The mean over examples of some classes, of which each part has another number."""
    return tf.reduce_mean(tf.boolean_mask(cross_entropies(y, logits), y > 2))


def normalized_by_the_largest(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Scores relative to the largest of the batch."""
    return cross_entropy(y, logits / tf.reduce_max(tf.abs(logits)))


def weighted_by_a_sum(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Weights of examples that add up to 1 over the batch."""
    weights = tf.cast(y + 1, tf.float32)
    return tf.reduce_sum(cross_entropies(y, logits) * weights) / tf.reduce_sum(weights)


def gram_matrix(y: tf.Tensor, logits: tf.Tensor) -> Any:
    """A matrix [classes, classes] that sums over examples."""
    return tf.matmul(logits, logits, transpose_a=True)


def sums_and_largest(y: tf.Tensor, logits: tf.Tensor) -> Any:
    """A sum, a count, a largest and a smallest number over examples."""
    right = tf.argmax(logits, axis=1, output_type=tf.int32) == y
    return tf.reduce_sum(logits), tf.math.count_nonzero(right), tf.reduce_max(logits), tf.reduce_min(logits, axis=0)


def spread(y: tf.Tensor, logits: tf.Tensor) -> Any:
    """The deviation of scores over examples."""
    return tf.math.reduce_std(logits, axis=0)


def sorted_examples(y: tf.Tensor, logits: tf.Tensor) -> Any:
    """Examples in order of a score: as many as came in, and not in the caller's order."""
    return tf.sort(logits[:, 0])


def counted_classes(y: tf.Tensor, logits: tf.Tensor) -> Any:
    """How many examples each class has."""
    return tf.math.bincount(y, minlength=5, maxlength=5)


def training_with(loss_of: Outputs) -> Case:
    """Gradient descent on this loss."""

    def build(scopes: Scopes) -> Training:
        blocks = classifier()
        variables = variables_of(blocks)

        def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape, scopes.replica:
                loss = loss_of(y, scopes.through(blocks, x))
            descend(variables, tape.gradient(loss, variables))
            return loss

        return Training(step, classified(scopes.examples), blocks)

    return Case(build, name=loss_of.__name__)


def evaluation_with(outputs_of: Outputs) -> Case:
    """These outputs, without a gradient."""

    def build(scopes: Scopes) -> Training:
        blocks = classifier()

        def step(x: tf.Tensor, y: tf.Tensor) -> Any:
            with scopes.replica:
                return outputs_of(y, scopes.through(blocks, x))

        return Training(step, classified(scopes.examples), blocks)

    return Case(build, name=outputs_of.__name__)


def gradient_by_inputs(scopes: Scopes) -> Training:
    """The mean loss differentiated by each example: it holds one over the number of examples."""
    blocks = classifier()

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            tape.watch(x)
            loss = cross_entropy(y, scopes.through(blocks, x))
        return tape.gradient(loss, x)

    return Training(step, classified(scopes.examples), blocks)


def clipped_by_examples(scopes: Scopes) -> Training:
    """A gradient that is clipped on its way back, where it holds one over the number of examples."""
    blocks = classifier()
    variables = variables_of(blocks)

    @tf.custom_gradient
    def clipped(h: tf.Tensor) -> Any:
        return tf.identity(h), lambda gradient: tf.clip_by_value(gradient, -0.01, 0.01)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, clipped(scopes.through(blocks, x)))
        descend(variables, tape.gradient(loss, variables))
        return loss

    return Training(step, classified(scopes.examples), blocks)


def twice_differentiated(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The sum of a gradient by examples, differentiated by them again."""
    with tf.GradientTape() as second:
        second.watch(logits)
        with tf.GradientTape() as first:
            first.watch(logits)
            waves = tf.reduce_mean(tf.sin(logits))
        slopes = first.gradient(waves, logits)
    return cross_entropy(y, logits) + 100.0 * tf.reduce_mean(second.gradient(slopes, logits) ** 2)


def size_of_a_gradient_differentiated(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The size of a gradient by examples, differentiated by them again."""
    with tf.GradientTape() as second:
        second.watch(logits)
        with tf.GradientTape() as first:
            first.watch(logits)
            loss = cross_entropy(y, logits)
        sizes = tf.reduce_sum(first.gradient(loss, logits) ** 2, axis=1)
    return loss + 10.0 * tf.reduce_mean(tf.abs(second.gradient(sizes, logits)))


def share_of_a_sum(y: tf.Tensor, logits: tf.Tensor) -> Any:
    """A sum divided by a number that only happens to be a multiple of the micro-batch's size."""
    return tf.reduce_sum(cross_entropies(y, logits)) / 8.0


def counting(change: Callable[[tf.Variable, tf.Tensor], Any]) -> Case:
    """An evaluation that changes a number by the losses of its examples, and returns it."""

    def build(scopes: Scopes) -> Training:
        blocks = classifier()
        number = tf.Variable(1.0, trainable=False, name="number")

        def step(x: tf.Tensor, y: tf.Tensor) -> Any:
            with scopes.replica:
                losses = cross_entropies(y, scopes.through(blocks, x))
            return change(number, losses), number.value()

        return Training(step, classified(scopes.examples), [*blocks, number])

    return Case(build, name=change.__name__)


def read_before_it_is_changed(number: tf.Variable, losses: tf.Tensor) -> tf.Tensor:
    """A function of what the number was before the step."""
    before = 2.0 * number.read_value()
    number.assign_add(tf.reduce_sum(losses))
    return before


def subtracted_from(number: tf.Variable, losses: tf.Tensor) -> tf.Tensor:
    """The opposite of a sum."""
    number.assign_sub(tf.reduce_sum(losses))
    return tf.reduce_max(losses)


LOSSES = (
    root_of_the_mean,
    contrast,
    mean_of_chosen,
    normalized_by_the_largest,
    weighted_by_a_sum,
    twice_differentiated,
    size_of_a_gradient_differentiated,
)
OUTPUTS = (gram_matrix, sums_and_largest, spread, sorted_examples, counted_classes, share_of_a_sum)
CASES = (
    *map(training_with, LOSSES),
    *map(evaluation_with, OUTPUTS),
    Case(gradient_by_inputs),
    Case(clipped_by_examples),
    counting(read_before_it_is_changed),
    counting(subtracted_from),
)

REFUSED = {"root_of_the_mean", "contrast", "normalized_by_the_largest"}
PARTS = Layout(replicas=2, micro_batches=2)


@pytest.mark.parametrize("case", [case for case in CASES if str(case) not in REFUSED], ids=str)
def test_the_batch_as_a_whole_is_one_device(case: Case) -> None:
    check(case, PARTS)


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in REFUSED], ids=str)
def test_a_loss_that_relates_examples_is_refused_with_the_line(case: Case) -> None:
    step, training = parallel(case, PARTS)
    with pytest.raises(whale.WhaleError, match=f" in {case}: "):
        step(*training.batches[0])


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in REFUSED], ids=str)
def test_a_loss_that_relates_examples_is_one_device_with_exact_coupling(case: Case) -> None:
    step, training = parallel(case, PARTS, coupling="exact")
    assert not differences(numbers(training, step), reference(case, PARTS.examples), TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_batch_as_a_whole_is_kept_by_stages(case: Case) -> None:
    """Stages alone do not divide a batch, so nothing is refused."""
    check(case, Layout(stages=2))


def test_python_code_is_refused() -> None:
    """What it makes of a batch cannot be known."""
    step, training = parallel(Case(python_in_the_step), PARTS)
    with pytest.raises(whale.errors.PlanError, match="in forward: "):
        step(*training.batches[0])


@pytest.mark.filterwarnings("ignore:each part of the batch has its own value of what accept= names")
def test_python_code_runs_by_parts_where_that_is_accepted() -> None:
    check(Case(python_in_the_step, accept=("PyFunc", "SparseSoftmaxCrossEntropyWithLogits")), PARTS)
