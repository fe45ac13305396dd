"""Annotated layers run in the stage of their number, and are otherwise what they were."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from whale_tf.annotate.models import annotate
from whale_tf.annotate.scopes import ATTRIBUTE, recording, stage
from whale_tf.errors import ScopeError

FILE = __file__.removeprefix(os.getcwd() + os.sep)


def stages_of(model: Callable[..., Any], *inputs: Any) -> list[tuple[str, int | None]]:
    """For each MatMul, Tanh and loop of a call of the model, in order: its type, and the number of its stage."""
    inputs = inputs or (tf.TensorSpec([2, 4]),)
    with recording() as record:
        graph = tf.function(lambda *args: model(*args)).get_concrete_function(*inputs).graph
    index = {opened.key: opened.index for opened in record.opened}
    found = []
    for op in graph.get_operations():
        key = op.get_attr(ATTRIBUTE).decode() if ATTRIBUTE in op.node_def.attr else ""
        kind = op.type.removeprefix("Stateless")
        if kind in ("MatMul", "Tanh", "While"):
            found.append((kind, index.get(key)))
    return found


@keras.saving.register_keras_serializable("whale_tf_tests")
class Squash(keras.Operation):  # type: ignore[misc]
    """An operation of a functional model that is no layer."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(x)


def functional() -> keras.Model:
    """Paths: first, inner, inner/one, inner/two, join (an operation, not a layer), last."""
    data = keras.Input((4,))
    hidden = keras.layers.Dense(4, use_bias=False, name="first")(data)
    inner_data = keras.Input((4,))
    one = keras.layers.Dense(4, use_bias=False, name="one")(inner_data)
    two = keras.layers.Dense(4, use_bias=False, name="two")(one)
    joined = Squash(name="join")(keras.Model(inner_data, two, name="inner")(hidden))
    return keras.Model(data, keras.layers.Dense(4, use_bias=False, name="last")(joined))


class Block(tf.Module):  # type: ignore[misc]
    """One matrix; AutoGraph must see its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(tf.eye(4))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Multiplies."""
        if x[0, 0] > 100:
            x = -x
        return x @ self.w


class Tower(tf.Module):  # type: ignore[misc]
    """Blocks that are called by a method of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [Block(), Block()]
        self.extra = {"tail": Block()}

    def encode(self, x: tf.Tensor) -> tf.Tensor:
        for layer in [*self.layers, self.extra["tail"]]:
            x = layer(x)
        return x


class Network(tf.Module):  # type: ignore[misc]
    """Paths: tower, tower/layers/0, tower/layers/1, tower/extra/tail, head, dense (Keras)."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.head = Tower(), Block()
        self.dense = keras.layers.Dense(4, use_bias=False)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self.dense(self.head(self.tower.encode(x)))


class Subclassed(keras.Model):  # type: ignore[misc]
    """A list of blocks of the same class, and a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [keras.layers.Dense(4, use_bias=False, name=f"block_{i}") for i in range(2)]
        self.tied = keras.layers.Dense(4, use_bias=False, name="tied")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = self.tied(x)
        for block in self.blocks:
            x = block(x)
        return self.tied(x)


def matmuls(*numbers: int | None) -> list[tuple[str, int | None]]:
    return [("MatMul", number) for number in numbers]


def test_functional_model_and_its_operations_have_stages() -> None:
    model = annotate(functional(), {"first|inner": 0, "join|last": 1})
    assert stages_of(model) == [*matmuls(0, 0, 0), ("Tanh", 1), *matmuls(1)]


def test_layer_has_the_stage_of_what_calls_it_unless_it_has_its_own() -> None:
    model = annotate(functional(), {"first|inner": 0, "inner/two": 1})
    assert stages_of(model) == [*matmuls(0, 0, 1), ("Tanh", None), *matmuls(None)]


def test_first_pattern_counts() -> None:
    model = annotate(functional(), {"last": 1, ".*": 0})
    assert stages_of(model) == [*matmuls(0, 0, 0), ("Tanh", 0), *matmuls(1)]


def test_numbers_say_the_order_whatever_runs_first() -> None:
    assert stages_of(annotate(functional(), {"first": 1, "last": 0})) == [
        *matmuls(1, None, None),
        ("Tanh", None),
        *matmuls(0),
    ]


@pytest.mark.parametrize("built", [False, True])
def test_subclassed_model_built_before_or_inside_the_step(built: bool) -> None:
    model = Subclassed()
    if built:
        model(tf.zeros((2, 4)))
    annotate(model, {"tied|block_0": 0, "block_1": 1})
    if not built:
        with recording() as record:
            model(keras.KerasTensor((2, 4)))
        assert record.opened == ()
    assert stages_of(model) == matmuls(0, 0, 1, 0)


def test_sequential_and_a_loop_inside_one_layer() -> None:
    cell = keras.layers.RNN(keras.layers.SimpleRNNCell(4, name="cell"), name="rnn")
    model = keras.Sequential([keras.Input((3, 4)), keras.layers.Activation("tanh", name="squash"), cell])
    annotate(model, {"squash": 0, "rnn|rnn/cell": 1})
    found = stages_of(model, tf.TensorSpec([2, 3, 4]))
    assert ("Tanh", 0) in found and ("While", 1) in found


def test_module_has_paths_of_attributes_and_gives_its_stage_to_what_it_holds() -> None:
    network = Network()
    assert stages_of(annotate(network, {"tower": 0, "head|dense": 1})) == matmuls(0, 0, 0, 1, 1)
    assert stages_of(annotate(network, {"tower/layers/0": 0, "tower": 1})) == matmuls(0, 1, 1, None, None)
    assert stages_of(annotate(network, {r"tower/layers/\d|tower/extra/tail": 0})) == matmuls(0, 0, 0, None, None)


def test_library_backbone_has_stages() -> None:
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=20, num_layers=2, num_heads=2, hidden_dim=4, intermediate_dim=8, max_sequence_length=8
    )
    annotate(backbone, {".*embed.*|transformer_layer_0": 0, "transformer_layer_1|pooled_dense": 1})
    tokens = tf.TensorSpec([2, 8], tf.int32)
    found = stages_of(backbone, {"token_ids": tokens, "segment_ids": tokens, "padding_mask": tokens})
    assert [number for kind, number in found if kind == "MatMul"] == [0, 0, 1, 1, 1]


def test_same_numbers_as_before_and_nothing_recorded_outside() -> None:
    x = tf.random.stateless_uniform((2, 4), (1, 2))
    for model, patterns in ((functional(), {"first": 0, "last": 1}), (Network(), {"tower": 0, "head": 1})):
        before = model(x)
        annotate(model, patterns)
        np.testing.assert_array_equal(model(x), before)
        np.testing.assert_array_equal(tf.function(model)(x), before)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3.15 with NumPy 2
def test_keras_model_trains_saves_and_clones(tmp_path: Path) -> None:
    model = functional()
    config, weights = model.get_config(), [weight.path for weight in model.weights]
    annotate(model, {"first|inner": 0, "join|last": 1})
    assert model.get_config() == config and [weight.path for weight in model.weights] == weights
    model.compile(loss="mse", jit_compile=False)
    model.fit(np.ones((2, 4)), np.ones((2, 4)), verbose=0)
    model.save(tmp_path / "model.keras")
    for other in (keras.models.load_model(tmp_path / "model.keras"), keras.models.clone_model(model)):
        assert {number for _, number in stages_of(other)} == {None}
    model.export(tmp_path / "saved", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(
        served.serve(tf.ones((2, 4))), model(tf.ones((2, 4))), rtol=1e-6
    )  # the exported graph is compiled anew


def test_keras_layer_keeps_its_signature() -> None:
    layer = keras.layers.Dropout(0.5, name="drop")
    before = inspect.signature(layer.call)
    annotate(keras.Sequential([layer]), {"drop": 0})
    assert inspect.signature(layer.call) == before and "training" in before.parameters


def test_module_keeps_its_class_name_variables_and_copies(tmp_path: Path) -> None:
    network = Network()
    looks = repr(network.head).split(" at ")[0]
    annotate(network, {"head": 0})
    assert isinstance(network.head, Block) and type(network.head).__qualname__ == "Block"
    assert repr(network.head).split(" at ")[0] == looks and type(network.head).__call__.__doc__ == "Multiplies."
    assert len(network.head.variables) == 1
    tf.train.Checkpoint(network=network).save(str(tmp_path / "checkpoint"))
    np.testing.assert_array_equal(copy.deepcopy(network.head)(tf.ones((1, 4))), np.ones((1, 4)))


def test_annotating_again_replaces() -> None:
    for model in (functional(), Network()):
        patterns = {"first": 0} if isinstance(model, keras.Model) else {"head": 0}
        before = {number for _, number in stages_of(annotate(model, patterns))}
        assert before == {0, None}
        annotate(model, {"last|dense": 0})
        assert [number for _, number in stages_of(model)].index(0) == len(stages_of(model)) - 1
    network = Network()
    for _ in range(2):
        annotate(network, {"head": 0})
    assert type(network.head).__mro__[1] is Block


def test_refusal_leaves_the_earlier_annotation() -> None:
    model = annotate(functional(), {"last": 0})
    with pytest.raises(ScopeError):
        annotate(model, {"nothing": 0})
    assert stages_of(model)[-1] == ("MatMul", 0)


def test_opened_names_the_call_of_annotate() -> None:
    model = annotate(functional(), {"first": 0})  # annotated
    (number,) = [
        i + 1 for i, text in enumerate(Path(__file__).read_text().splitlines()) if text.endswith("  # annotated")
    ]
    with recording() as record:
        tf.function(model).get_concrete_function(tf.TensorSpec([2, 4]))
    assert [str(opened) for opened in record.opened] == [f"stage 0 annotated at {FILE}:{number}"]
    assert [(opened.key, opened.name, opened.index) for opened in record.opened] == [("s0", "stage 0", 0)]


def test_rejects_annotated_layer_inside_a_stage() -> None:
    model = annotate(functional(), {"first": 0})

    def step(x: tf.Tensor) -> tf.Tensor:
        with stage():
            return model(x)

    with pytest.raises(ScopeError, match="stage 0 is opened inside another stage scope"), recording():
        tf.function(step, autograph=False).get_concrete_function(tf.TensorSpec([2, 4]))


def message(model: Any, patterns: Mapping[str, Any]) -> str:
    """The refusal, without the user's line."""
    with pytest.raises(ScopeError) as caught:
        annotate(model, patterns)
    lines = str(caught.value).split("\n")
    assert lines[-2].endswith("in message: annotate(model, patterns)") and lines[-2].startswith(f"  at {FILE}:")
    return "\n".join([*lines[:-2], lines[-1]])


def test_rejects_patterns_that_match_nothing() -> None:
    assert message(functional(), {"frist": 0, "inner/x": 1, "last": 2}) == (
        "a pattern of annotate matches no layer.\n"
        "  'frist' matches nothing\n"
        "  'inner/x' matches nothing\n"
        "  there are: first, inner, inner/two, inner/one, join, last\n"
        "  A pattern must match a whole path: write 'encoder/.*' for all that is under encoder."
    )


def test_names_ten_paths_close_ones_first() -> None:
    model = keras.Sequential(
        [keras.layers.Dense(1, name=f"layer_{i}") for i in range(12)] + [keras.layers.ReLU(name="head")]
    )
    assert message(model, {"heed": 0}).split("\n")[2] == (
        "  there are: head, layer_0, layer_1, layer_2, layer_3, layer_4, layer_5, layer_6, layer_7, layer_8 and 3 more"
    )


def test_rejects_patterns_that_decide_nothing() -> None:
    assert message(functional(), {".*": 0, "last": 1}) == (
        "a pattern of annotate decides no layer.\n"
        "  'last' matches only what an earlier one has taken, or what cannot be called\n"
        "  The first pattern that matches counts: put the narrower one first, or narrow the earlier one."
    )


def test_rejects_what_is_no_regular_expression() -> None:
    assert message(functional(), {"first(": 0, "last": 1}) == (
        "a pattern of annotate is not a regular expression.\n"
        "  'first(': missing ), unterminated subpattern at position 5\n"
        "  Escape what is meant literally, as in 'block\\(1\\)' or with re.escape."
    )


def test_rejects_numbers_with_a_gap() -> None:
    assert message(functional(), {"first": 1, "last": 4}) == (
        "stage numbers must have no gap.\n  given: 1, 4\n  missing: 0, 2, 3\n  Count the 2 stages from 0 to 1."
    )


def test_rejects_numbers_that_are_none() -> None:
    assert message(functional(), {"first": 0.0, "inner": True, "last": -1}) == (
        "stage numbers must be whole numbers, 0 or more.\n"
        "  'first': 0.0\n"
        "  'inner': True\n"
        "  'last': -1\n"
        "  Count the stages 0, 1, 2, ... in the order in which data passes them."
    )


def test_rejects_no_pattern_and_no_model() -> None:
    assert message(functional(), {}) == (
        "annotate was given no pattern.\n"
        "  Write annotate(model, {'encoder': 0, 'decoder': 1}), or {'decoder': whale.split()}."
    )
    assert message(print, {".*": 0}) == (
        "annotate takes a Keras model or layer, or a tf.Module.\n"
        "  this is a builtin_function_or_method\n"
        "  Pass the model itself, or open whale.stage() in the step."
    )
