"""What splits cut: layers from outside, along sequences, up to what is whole; and where there is nothing to cut."""

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


def test_what_is_whole_is_cut_no_further() -> None:
    whale.init(2)
    weights = [tf.Variable(tf.random.stateless_normal((6, 6), (0, seed))) for seed in range(2)]

    @whale.function
    def step(x: Any, *, stop: bool) -> Any:
        with tf.GradientTape() as tape, whale.split():
            h = tf.nn.relu(x @ weights[0])
            h = whale.whole(h) if stop else h
            loss = tf.reduce_sum((h @ tf.identity(weights[1])) ** 2)
        return loss, tape.gradient(loss, weights)

    x, _ = batch()
    lies = []
    for stop in (False, True):
        loss, gradients = step(x, stop=stop)
        with tf.GradientTape() as tape:
            wanted = tf.reduce_sum((tf.nn.relu(x @ weights[0]) @ weights[1]) ** 2)
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)
        for given, expected in zip(gradients, tape.gradient(wanted, weights), strict=True):
            np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)
        lies.append(step.plan.meshes[0].parameters)
    assert list(lies[0].values()) == ["Split(1)", "Split(0)"]  # the second product sums over what the first has cut
    assert list(lies[1].values()) == ["Split(1)", "Split(1)"]  # it is cut for itself


class Layer(tf.Module):  # type: ignore[misc]
    """A normalization and two products, along the last dim, with what comes in added."""

    def __init__(self, seed: int) -> None:
        self.gain = tf.Variable(tf.ones(8))
        self.up = tf.Variable(tf.random.stateless_normal((8, 16), (1, seed)))
        self.down = tf.Variable(tf.random.stateless_normal((16, 8), (2, seed)))

    def __call__(self, h: Any) -> Any:
        with whale.split(dim=1):
            z = self.gain * (h - tf.reduce_mean(h, -1, keepdims=True))
        with whale.split():
            z = tf.nn.relu(z @ self.up) @ self.down
        with whale.split(dim=1):
            return h + tf.nn.dropout(z, 0.0)


def test_sequences_are_cut_between_the_products() -> None:
    whale.init(2)
    layers = [Layer(seed) for seed in range(2)]
    variables = [variable for layer in layers for variable in layer.trainable_variables]

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            h = x
            for layer in layers:
                h = layer(h)
            loss = tf.reduce_mean(tf.square(h))
        return loss, tape.gradient(loss, variables)

    x = tf.random.stateless_normal((4, 6, 8), (3, 0))
    cut = whale.function(micro_batches=2)(step)
    loss, gradients = cut(x)
    wanted, expected = step(x)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for given, there in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(given, there, rtol=1e-4, atol=1e-5)
    said = {(exchange.backward, exchange.op): 0 for exchange in cut.plan.meshes[0].exchanges}
    for exchange in cut.plan.meshes[0].exchanges:
        said[exchange.backward, exchange.op] += exchange.count
    # As published (Korthikanti et al. 2022, figure 5), and an all-gather of each product's input for its gradient. The
    # first layer's input has no gradient.
    assert said[False, "AllGather"] == 2
    assert said[False, "ReduceScatter"] == 2
    assert said[True, "ReduceScatter"] == 2
    assert said[True, "AllGather"] == 4
    assert said.get((False, "AllReduce"), 0) == 1  # the loss


def test_a_split_with_nothing_to_cut_is_refused() -> None:
    whale.init(2)

    @whale.function
    def step(x: Any) -> Any:
        with whale.split():
            return tf.reduce_sum(x)

    with pytest.raises(whale.errors.ScopeError, match=r"there is nothing in split\(\) to cut"):
        step(batch()[0])


def test_what_cannot_be_cut_is_told_and_computed_whole() -> None:
    whale.init(2)
    weight = tf.Variable(tf.random.stateless_normal((6, 8), (0, 0)))

    @whale.function
    def step(x: Any) -> Any:
        with whale.split():
            return tf.reduce_sum(tf.sort(x @ weight, axis=1)[:, :3])

    x, _ = batch()
    with pytest.warns(UserWarning, match=r"TopKV2 '.*' cannot be cut over 2 devices"):
        np.testing.assert_allclose(step(x), tf.reduce_sum(tf.sort(x @ weight, axis=1)[:, :3]), rtol=1e-5)
    assert step.plan.meshes[0].gathered
