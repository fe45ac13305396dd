"""The phases of a step that one part runs whole."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from tests.plan.traced import WIDTH, trace
from tests.rewrite.steps import TRAINING, resolved, sized
from whale_tf.ir.graph import Ref
from whale_tf.plan.one_part import undivided
from whale_tf.plan.states import FREE


def test_nothing_is_cut_or_merged() -> None:
    states = undivided(sized(TRAINING, 8, 8))
    assert {str(known.value) for known in states.known.values()} == {"Whole"}
    assert (states.uses, states.bodies, states.why, states.accepted) == ({}, {}, {}, frozenset())


def test_phases_are_those_of_several_parts_where_nothing_couples_them() -> None:
    several, one = resolved(TRAINING, 8), undivided(sized(TRAINING, 8, 8))
    assert one.markers == several.markers
    assert {name: one.level[name] for name in ("x", "h", "z", "d0", "g0", "s0", "u0", "w0", "rate")} == {
        name: several.level[name] for name in ("x", "h", "z", "d0", "g0", "s0", "u0", "w0", "rate")
    }


def test_what_relates_examples_is_run_with_the_rest() -> None:
    traced = trace(lambda x: {"y": tf.sqrt(tf.reduce_sum(tf.sort(x, axis=0)))})
    states = undivided(traced.sizes)
    assert states.level[traced.outputs["y"].node] == 0


def test_what_follows_from_gradients_is_of_the_next_phase() -> None:
    weights = tf.Variable(tf.ones([WIDTH, 1]))

    def step(x: tf.Tensor) -> dict[str, Any]:
        for _ in range(2):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(x @ weights))
            weights.assign_sub(tape.gradient(loss, weights))
        return {"loss": loss}

    traced = trace(step)
    states = undivided(traced.sizes)
    assert sorted(states.level[name] for name in states.markers) == [1, 3]
    assert states.level[traced.outputs["loss"].node] == 2


@pytest.mark.parametrize(
    ("uses", "level"),
    [("y = Mul(x, noise) : float32[BATCH]", 0), ("y = Neg(x) : float32[BATCH]", 0)],
)
def test_what_is_drawn_is_drawn_with_the_examples(uses: str, level: int) -> None:
    text = f"""
        graph step(out: y, noise) {{
          x = Input() {{index=0, batch=true}} : float32[BATCH]
          shape = Const() {{value=(BATCH)}} : int32[1]
          noise = RandomUniform(shape) : float32[BATCH]  @stateful
          {uses}
        }}
    """
    assert undivided(sized(text, 8, 8)).level["noise"] == level


def test_what_only_the_update_draws_is_not_drawn_with_the_examples() -> None:
    noise = """shape = Const() {value=(3, 2)} : int32[2]
  noise = RandomUniform(shape) : float32[3,2]  @stateful
  s0 = Mul(g0, noise)"""
    states = undivided(sized(TRAINING.replace("s0 = Mul(g0, rate)", noise), 8, 8))
    assert states.level["noise"] == FREE
    assert states.level["s0"] == 1
    assert Ref("noise") in states.known
