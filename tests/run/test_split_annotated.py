"""Splits from outside: `annotate` with `whale.split()`, alone, beside stages, and where it has nothing to cut over."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from whale_tf.annotate.split import split


def model_of() -> Any:
    """Two hidden layers and a head."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="relu", name=name) for name in ("up", "down", "head")]
    model = keras.Sequential(layers, name="sequential")
    model.build((None, 6))
    return model


def step_of(model: Any, decorate: Callable[[Any], Any]) -> Any:
    """One step of gradient descent."""
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)

    @decorate
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    return step


def batch() -> tuple[Any, Any]:
    """8 examples."""
    numbers = np.random.default_rng(0)
    return tf.constant(numbers.normal(size=(8, 6)), tf.float32), tf.constant(numbers.normal(size=(8, 8)), tf.float32)


def trained(scopes: dict[str, int | split], decorate: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The model after three steps, and the step; equal to one device."""
    plain, model = model_of(), model_of()
    one_device = step_of(plain, tf.function)
    step = step_of(whale.annotate(model, scopes), decorate)
    for _ in range(3):
        np.testing.assert_allclose(step(*batch()), one_device(*batch()), rtol=1e-5)
    for given, wanted in zip(model.trainable_variables, plain.trainable_variables, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)
    return model, step


def test_layers_that_are_annotated_are_cut_and_what_follows_with_them() -> None:
    whale.init(2)
    _, step = trained({"up": whale.split()}, whale.function)
    (use,) = step.plan.meshes
    assert use.parameters == {
        "sequential/up/kernel": "Split(1)",
        "sequential/up/bias": "Split(0)",
        "sequential/down/kernel": "Split(0)",
    }


def test_a_dim_can_be_said() -> None:
    whale.init(2)
    _, step = trained({"up": whale.split(dim=0)}, whale.function)
    (use,) = step.plan.meshes
    assert use.parameters["sequential/up/kernel"] == "Split(0)"


def test_layers_have_stages_and_splits() -> None:
    whale.init(3)
    scopes: dict[str, int | split] = {"up": 0, "down|head": 1, "head": whale.split()}
    _, step = trained(scopes, whale.function(micro_batches=2, strategy=whale.Strategy(devices=((0, (1, 2)),))))
    (use,) = step.plan.meshes
    assert (use.stage, use.members) == (1, 2)
    assert set(use.parameters) == {"sequential/head/kernel", "sequential/head/bias"}


def test_a_split_over_one_device_is_told() -> None:
    whale.init(2)
    with pytest.warns(UserWarning, match=r"split\(\) cuts nothing in stage 1, which has one device in each replica"):
        trained({"up": 0, "down|head": 1, "head": whale.split()}, whale.function)
