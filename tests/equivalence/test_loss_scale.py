"""Optimizers that update under a condition train as on one device, and each update runs where its variable is owned."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tests.equivalence.cases import LAYOUTS
from tests.equivalence.cases_optimizers import LOSS_SCALES
from tests.equivalence.harness import Case, Layout, Training, check, parallel
from whale_tf.ir.graph import Graph, Node
from whale_tf.plan.roles import variable_of

ADAM = LOSS_SCALES[0]
PIPELINE = Layout(replicas=2, stages=2, micro_batches=2)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("case", LOSS_SCALES, ids=str)
def test_training_equals_one_device(case: Case, layout: Layout) -> None:
    check(case, layout)


def optimizer_of(training: Training) -> keras.optimizers.LossScaleOptimizer:
    return next(owner for owner in training.owners if isinstance(owner, keras.optimizers.LossScaleOptimizer))


def test_a_step_that_overflows_in_one_part_changes_the_scale_alone() -> None:
    """The last example of the second batch overflows: it is in one micro-batch of one replica."""
    step, training = parallel(ADAM, PIPELINE)
    optimizer = optimizer_of(training)
    scales, states = [], []
    for batch in training.batches:
        step(*batch)
        scales.append(float(optimizer.dynamic_scale.numpy()))
        states.append(
            [variable.numpy() for owner in training.owners for variable in owner.variables if len(variable.shape)]
        )
    assert scales == [2048.0, 1024.0, 2048.0]
    for before, after in zip(states[0], states[1], strict=True):
        np.testing.assert_array_equal(before, after)
    assert any((before != after).any() for before, after in zip(states[1], states[2], strict=True))


def makers(main: Graph) -> dict[str, Node]:
    """For each variable that the program assigns, the node that makes what it is assigned."""
    sent = {node.attrs["key"]: node.inputs[0].node for node in main if node.op == "Send"}
    found: dict[str, Node] = {}
    for node in main:
        if node.op == "Assign":
            maker = main[node.inputs[0].node]
            while maker.op == "Recv":
                maker = main[sent[maker.attrs["key"]]]
            found[variable_of(node)] = maker
    return found


@pytest.mark.parametrize("case", LOSS_SCALES, ids=str)
def test_an_update_runs_where_its_variable_is_owned(case: Case) -> None:
    step, _ = check(case, PIPELINE)
    made = makers(step.compiled.parts.program.main)
    layout, variables = step.plan.layout, step.plan.variables
    owner = {name: layout.device_at(0, variable.owner[0]) for name, variable in variables.items() if variable.owner}
    assert len(set(owner.values())) == 4  # every device owns something
    for name, device in owner.items():
        assert (made[name].op, made[name].device) == ("StatelessIf", device)
        slots = [slot for slot in made if name.replace("/", "_") in slot]
        assert slots and {made[slot].device for slot in slots} == {device}, slots
