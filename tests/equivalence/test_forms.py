"""Whatever a step makes of its batch is one device's, or is refused with all that helps: see forms.py.

Losses that need more of the batch than a part has are refused; outputs and writes never are.
"""

from __future__ import annotations

import enum
import re
import warnings
from collections.abc import Mapping, Sequence

import pytest

from tests.equivalence.form_cases import (
    FORMS,
    NARROW,
    REPLICAS,
    Choice,
    all_layouts,
    check_form,
    layouts_in_turn,
    spread,
)
from tests.equivalence.forms import Form
from tests.equivalence.forms_losses import LOSSES, RELATED, STATISTICS
from tests.equivalence.forms_outputs import OUTPUTS
from tests.equivalence.forms_writes import WRITES
from tests.equivalence.harness import Layout
from whale_tf.errors import Line, PlanError, WhaleError

TESTED = 5  # of the refused forms one in so many shows in the default run that the way out by accept= works


class Lacks(enum.Enum):
    """What a part of the batch lacks in the middle of the step."""

    STATISTIC = "a few numbers that all examples make: merged between replicas, too late between micro-batches"
    EXAMPLES = "other examples"


REFUSED: Mapping[str, Lacks] = {
    **{str(form): Lacks.STATISTIC for form in STATISTICS},
    **{str(form): Lacks.EXAMPLES for form in RELATED},
}


def is_refused(form: Form, layout: Layout) -> bool:
    """Whether this form is refused under this layout with coupling="auto"."""
    lacks = REFUSED.get(str(form))
    parts = layout.replicas * layout.micro_batches
    return (lacks is Lacks.STATISTIC and layout.micro_batches > 1) or (lacks is Lacks.EXAMPLES and parts > 1)


def params(choices: Sequence[Choice]) -> list[object]:
    """Choices as parameters of a test, with readable names."""
    return [pytest.param(choice, id=str(choice)) for choice in choices]


# Of these a part's own value could stand for that of the batch, and the refusal says so: means over examples, and what
# relates the examples of a part. Of other totals, as sums and extremes, and of positions in the batch it could not.
ACCEPTED = {
    "root_of_the_mean", "log_of_the_mean", "square_of_the_mean", "product_of_means", "mean_times_its_constant_self",
    "absolute_mean", "flooded_mean", "centered_features", "standardized_features", "variance_penalty",
    "deviation_of_features", "entropy_of_the_mean", "balance_of_experts", "where_the_mean_is_positive",
    "losses_up_to_their_mean", "losses_above_their_mean", "advantage_over_the_mean",
    "sorted_losses", "median_loss",
    "sorted_against_a_normal_sample", "rolled_batch", "mixed_examples",
    "permuted_batch", "accumulated_batch", "softmax_over_the_batch", "attention_over_the_batch",
    "pooled_over_the_batch", "contrast_of_two_views",
    "nearest_other_example",
    "groups_of_a_reshape",
}  # fmt: skip

REFUSABLE = [form for form in LOSSES if str(form) in REFUSED]
LOSSES_IN_TURN = list(layouts_in_turn(LOSSES))
EQUAL = [choice for choice in LOSSES_IN_TURN if not is_refused(choice.form, choice.layout)]
# Each at the width that is a micro-batch's size; the other width is in the long run.
AFTERWARDS = [choice for choice in layouts_in_turn((*OUTPUTS, *WRITES)) if choice.width == NARROW]
COUPLED = [choice for choice in LOSSES_IN_TURN if is_refused(choice.form, choice.layout)]
EXACT = list({choice.form: choice for choice in COUPLED}.values())
ACCEPTABLE = [choice for choice in EXACT if str(choice.form) in ACCEPTED]


@pytest.mark.parametrize("choice", params(EQUAL))
def test_loss_is_one_devices(choice: Choice) -> None:
    check_form(choice)


@pytest.mark.parametrize("choice", params(AFTERWARDS))
def test_output_or_write_is_one_devices(choice: Choice) -> None:
    check_form(choice)


@pytest.mark.parametrize("choice", params([Choice(form, NARROW, REPLICAS) for form in STATISTICS]))
def test_statistic_is_merged_between_replicas(choice: Choice) -> None:
    """With one micro-batch nothing waits for it, so it is done by itself."""
    check_form(choice)


@pytest.mark.parametrize("choice", params(COUPLED))
def test_loss_that_needs_other_examples_is_refused_with_the_whole_message(choice: Choice) -> None:
    error = refusal(choice)
    lines = str(error).splitlines()
    assert lines[0] == error.rule.rstrip(".") + "."
    assert lines[1:] == [
        *(f"  {detail}" for detail in error.details),
        *(f"  at {line}" for line in error.at),
        *(f"  in {scope}" for scope in error.scope),
        f"  {error.way_out}",
    ]
    assert any(re.search(r"'[^']+'", detail) for detail in error.details), f"no detail names an operation: {error}"
    assert is_in(error.at[0], choice.form), f"not a line of {choice.form}: {error}"
    assert all(re.search(r" opened at \S+:\d+", scope) for scope in error.scope), str(error)
    for way_out in ways_out(choice):
        assert way_out in error.way_out, f"{way_out} is missing: {error}"
    assert ("accept=" in error.way_out) == (str(choice.form) in ACCEPTED), str(error)


@pytest.mark.parametrize("choice", params(EXACT))
def test_refused_loss_is_one_devices_with_exact_coupling(choice: Choice) -> None:
    check_form(choice, coupling="exact")


@pytest.mark.parametrize("choice", params(ACCEPTABLE[::TESTED]))
def test_refused_loss_runs_with_one_warning_where_what_it_names_is_accepted(choice: Choice) -> None:
    accepts_with_one_warning(choice)


@pytest.mark.parametrize(("name", "said"), [("sum_of_losses", "mean"), ("mean_of_losses", "sum")])
def test_loss_that_is_not_what_the_step_says_is_refused(name: str, said: str) -> None:
    (form,) = (form for form in LOSSES if str(form) == name)
    step, training = spread(Choice(form, NARROW, Layout(replicas=2, micro_batches=2)), loss=said)
    with pytest.raises(WhaleError, match=f"loss=.{said}"):
        step(*training.batches[0])


def test_table_names_losses_only() -> None:
    assert set(REFUSED) <= set(map(str, LOSSES))


def test_every_form_has_a_name_of_its_own() -> None:
    names = list(map(str, FORMS))
    assert len(set(names)) == len(names)


@pytest.mark.long
@pytest.mark.longest
@pytest.mark.parametrize("choice", params(list(all_layouts(FORMS))))
def test_form_is_one_devices_or_refused_under_every_layout(choice: Choice) -> None:
    if is_refused(choice.form, choice.layout):
        refusal(choice)
    else:
        check_form(choice)


@pytest.mark.long
@pytest.mark.longest
@pytest.mark.parametrize("choice", params(list(all_layouts(REFUSABLE))))
def test_refused_loss_is_one_devices_with_exact_coupling_under_every_layout(choice: Choice) -> None:
    check_form(choice, coupling="exact")


@pytest.mark.long
@pytest.mark.parametrize("choice", params(ACCEPTABLE))
def test_every_refused_loss_runs_with_one_warning_where_what_it_names_is_accepted(choice: Choice) -> None:
    accepts_with_one_warning(choice)


def refusal(choice: Choice) -> PlanError:
    """The error that the first call raises."""
    step, training = spread(choice)
    with pytest.raises(PlanError) as caught:
        step(*training.batches[0])
    return caught.value


def accepts_with_one_warning(choice: Choice) -> None:
    """Follows the refusal's way out: accepts what it names."""
    named = re.search(r"accept=\((.*?)\) takes", refusal(choice).way_out)
    assert named is not None
    step, training = spread(choice, accept=tuple(re.findall(r"'([^']+)'", named[1])))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in training.batches:
            step(*batch)
    assert len(caught) == 1, [str(each.message) for each in caught]
    assert is_in(str(caught[0].message), choice.form)


def ways_out(choice: Choice) -> list[str]:
    """What a refusal must offer."""
    fewer = ["micro_batches=1"] if choice.layout.micro_batches > 1 and may_be_merged(choice) else []
    accept = ["accept="] if str(choice.form) in ACCEPTED else []
    return [*fewer, 'coupling="exact"', *accept]


def may_be_merged(choice: Choice) -> bool:
    """Whether micro_batches=1 helps: statistics are merged then; without replicas the batch is not divided at all."""
    return REFUSED[str(choice.form)] is Lacks.STATISTIC or choice.layout.replicas == 1


def is_in(line: Line | str, form: Form) -> bool:
    """Whether a line, or the first place that a text names, is in the form's own function."""
    if isinstance(line, Line):
        return line.file.endswith(form.file.name) and line.number in form.lines
    found = re.search(rf"{re.escape(form.file.name)}:(\d+)", line)
    return found is not None and int(found[1]) in form.lines
