"""Two stages in two processes under a loss scale: each updates its own variables. test_gathering.py starts it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import whale_tf as whale
from whale_tf.run.away import is_away
from whale_tf.world import read_environment

RANK = read_environment(os.environ).rank


class Regression:
    """Two layers and an optimizer that leaves steps out whose gradients are not finite."""

    def __init__(self) -> None:
        keras.utils.set_random_seed(0)
        self.first, self.second = keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)
        keras.Sequential([keras.Input((4,)), self.first, self.second])
        self.variables = [*self.first.variables, *self.second.variables]
        inner = keras.optimizers.Adam(0.01, global_clipnorm=1.0)
        self.optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0, dynamic_growth_steps=2)
        self.optimizer.build(self.variables)

    def step(self, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            with whale.stage():
                h = self.first(x)
            with whale.stage():
                loss = tf.reduce_mean((self.second(h) - y) ** 2)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.variables)
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))
        return loss

    def slots(self, layer: Any) -> list[Any]:
        """The optimizer's slots of a layer's variables."""
        names = [variable.path.replace("/", "_") for variable in layer.variables]
        return [slot for slot in self.optimizer.variables if any(name in slot.path for name in names)]


def train(step: Callable[..., Any]) -> list[float]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=(16, 1)).astype(np.float32)
    overflowing = y.copy()
    overflowing[-1] = 1e20
    return [float(step(x, each)) for each in (y, y, overflowing, y)]


def main() -> None:
    assert whale.init(devices=1).rank == RANK
    alone, model = Regression(), Regression()
    losses = train(tf.function(alone.step))
    step = whale.function(micro_batches=4)(model.step)
    np.testing.assert_allclose(train(step), losses, rtol=1e-5)

    own, other = (model.first, model.second) if RANK == 0 else (model.second, model.first)
    assert len(model.slots(own)) == len(model.slots(other)) == 4
    assert [is_away(slot.value) for slot in model.slots(own)] == [False] * 4
    assert [is_away(slot.value) for slot in model.slots(other)] == [True] * 4
    program = step.compiled.parts.program
    assigns = [node for node in program.main if node.op == "Assign"]
    for layer, process in ((model.first, 0), (model.second, 1)):
        for variable in (*layer.variables, *model.slots(layer)):
            own_assigns = [node for node in assigns if node.attrs["variable"].decode() == variable.path]
            assert {program.process_of(node) for node in own_assigns} == {process}, variable.path
    assert float(model.optimizer.dynamic_scale.numpy()) == float(alone.optimizer.dynamic_scale.numpy()) == 64.0

    step.gather()
    pairs = zip(
        [*alone.variables, *alone.optimizer.variables], [*model.variables, *model.optimizer.variables], strict=True
    )
    for wanted, got in pairs:
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-7)
    print("all is as expected", flush=True)


if __name__ == "__main__":
    main()
