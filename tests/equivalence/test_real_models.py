"""Models as their libraries ship them, annotated from outside, trained two steps: the numbers of one device.

Small inputs and small configurations, weights at random; nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.equivalence.harness import Case, Layout, Scopes, Training, check
from tests.equivalence.models import cross_entropy, optimized

pytestmark = [
    pytest.mark.long,
    # KerasHub's T5 passes masks to layers that ignore them.
    pytest.mark.filterwarnings("ignore:Layer '(self|cross)_attention' .of type T5MultiHeadAttention.:UserWarning"),
]

CLASSES = 10
TOKENS = 20
PLACES = 8
# Backbones add up more numbers than the small nets of the other files: about 10 times the rounding.
TOLERANCE = 1e-4
OF_FLOAT64 = 1e-8


def in_stages(model: Any, stages: int) -> Any:
    """The model with its operations, in the order they run, divided evenly over stages."""
    names = [operation.name for operation in model.operations if not isinstance(operation, keras.layers.InputLayer)]
    if stages > 1:
        whale.annotate(model, {re.escape(name): i * stages // len(names) for i, name in enumerate(names)})
    return model


def trained(scopes: Scopes, model: Any, head: Any, batches: Sequence[tuple[Any, ...]], *, training: bool) -> Training:
    """Two steps of a model whose pooled output goes through a head."""
    variables = [*model.trainable_variables, *head.trainable_variables]
    optimizer = optimized(keras.optimizers.SGD(0.01, momentum=0.9), variables)

    def step(inputs: Any, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, head(model(inputs, training=training)))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return Training(step, batches, [model, head, optimizer])


def labels(examples: int, generator: np.random.Generator) -> Any:
    """Class numbers of one batch."""
    return generator.integers(0, CLASSES, size=examples).astype(np.int32)


def images(examples: int, size: int) -> list[tuple[Any, ...]]:
    """Two batches of images and labels."""
    generator = np.random.default_rng(3)
    shape = (examples, size, size, 3)
    return [(generator.uniform(size=shape).astype(np.float32), labels(examples, generator)) for _ in range(2)]


def tokens(examples: int, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Two batches of token inputs by name: tokens, masks of ones and zeros, segments."""
    generator = np.random.default_rng(4)

    def made(name: str) -> Any:
        if name.endswith("mask"):
            return (np.arange(PLACES) < generator.integers(3, PLACES + 1, size=(examples, 1))).astype(np.int32)
        return generator.integers(0, 2 if name == "segment_ids" else TOKENS, size=(examples, PLACES)).astype(np.int32)

    return [({name: made(name) for name in names}, labels(examples, generator)) for _ in range(2)]


class Pooled(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Class scores from the named output of a backbone, averaged over its places if it has them."""

    def __init__(self, width: int, output: str = "") -> None:
        super().__init__()
        self.output_name = output
        self.scores = keras.layers.Dense(CLASSES)
        self.scores.build((None, width))
        self.built = True

    def call(self, outputs: Any) -> tf.Tensor:
        hidden = outputs[self.output_name] if self.output_name else outputs
        return self.scores(hidden if hidden.shape.rank == 2 else tf.reduce_mean(hidden, axis=1))


def application(make: Callable[..., Any], *, training: bool) -> Callable[[Scopes], Training]:
    """A model of keras.applications on 32 × 32 images.

    It computes in float64: with fresh weights its batch statistics come from few numbers, in the last layers one per
    image, and two steps make a tenth of float32's rounding. What is left of float64's is far below any real difference.
    """

    def build(scopes: Scopes) -> Training:
        usual = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float64")
        try:
            model = make(weights=None, input_shape=(32, 32, 3), classes=CLASSES, classifier_activation=None)
        finally:
            keras.config.set_dtype_policy(usual)
        in_stages(model, scopes.stages)
        return trained(
            scopes, model, keras.layers.Identity(dtype="float64"), images(scopes.examples, 32), training=training
        )

    return build


def bert(scopes: Scopes) -> Training:
    """Two layers, of which the first starts the second half."""
    model = keras_hub.models.BertBackbone(TOKENS, 2, 2, 16, 32, dropout=0.0, max_sequence_length=PLACES)
    in_stages(model, scopes.stages)
    batches = tokens(scopes.examples, ("token_ids", "segment_ids", "padding_mask"))
    return trained(scopes, model, Pooled(16, "pooled_output"), batches, training=True)


def gpt2(scopes: Scopes) -> Training:
    """Two layers."""
    model = keras_hub.models.GPT2Backbone(TOKENS, 2, 2, 16, 32, dropout=0.0, max_sequence_length=PLACES)
    in_stages(model, scopes.stages)
    return trained(scopes, model, Pooled(16), tokens(scopes.examples, ("token_ids", "padding_mask")), training=True)


def t5(scopes: Scopes) -> Training:
    """Encoder in the first stage, decoder in the second; both read one embedding."""
    model = keras_hub.models.T5Backbone(TOKENS, 2, 2, 16, 32, dropout=0.0)
    if scopes.stages > 1:
        whale.annotate(
            model, {"token_embedding|encoder_.*|transformer_encoder_.*": 0, "decoder_.*|transformer_decoder_.*": 1}
        )
    sides = ("encoder", "decoder")
    batches = tokens(scopes.examples, [f"{side}_{kind}" for side in sides for kind in ("token_ids", "padding_mask")])
    return trained(scopes, model, Pooled(16, "decoder_sequence_output"), batches, training=True)


def vit(scopes: Scopes) -> Training:
    """Patches and the first block in the first stage, which stands inside the encoder layer."""
    model = keras_hub.models.ViTBackbone((16, 16, 3), 4, 2, 2, 16, 32)
    if scopes.stages > 1:
        first = ".*patching.*|vit_encoder/transformer_block_1"
        whale.annotate(model, {first: 0, "vit_encoder/(transformer_block_2|ln|dropout)": 1})
    return trained(scopes, model, Pooled(16), images(scopes.examples, 16), training=True)


APPLICATIONS = {
    "resnet50": keras.applications.ResNet50,
    "mobilenet_v2": keras.applications.MobileNetV2,
    "efficientnet_b0": keras.applications.EfficientNetB0,
}
BACKBONES = (
    Layout(replicas=2, examples=8),
    Layout(stages=2, micro_batches=2, examples=8),
    Layout(replicas=2, stages=2, micro_batches=2, examples=8),
)


@pytest.mark.parametrize("layout", [Layout(stages=2, examples=8)], ids=str)
@pytest.mark.parametrize("name", APPLICATIONS)
def test_image_model_in_stages_equals_one_device(name: str, layout: Layout) -> None:
    """Batch statistics and Dropout are those of one device, since the batch is not divided."""
    check(Case(application(APPLICATIONS[name], training=True), name=name, tolerance=OF_FLOAT64), layout)


@pytest.mark.parametrize(
    "layout", [Layout(replicas=2, examples=8), Layout(replicas=2, stages=2, micro_batches=2, examples=8)], ids=str
)
@pytest.mark.parametrize("name", APPLICATIONS)
def test_replicated_image_model_equals_one_device(name: str, layout: Layout) -> None:
    """With moving averages in the place of batch statistics, as when a pretrained model is tuned."""
    check(Case(application(APPLICATIONS[name], training=False), name=name, tolerance=OF_FLOAT64), layout)


@pytest.mark.parametrize("layout", BACKBONES, ids=str)
@pytest.mark.parametrize("build", [bert, gpt2, t5, vit])
def test_backbone_equals_one_device(build: Callable[[Scopes], Training], layout: Layout) -> None:
    check(Case(build, tolerance=TOLERANCE), layout)
