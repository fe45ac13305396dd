"""Steps whose operators are cut give the numbers of one device: models, layouts, and what is asked of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.equivalence.cases import CASES
from tests.equivalence.harness import TOLERANCE, Case, Layout, Scopes, Training, check, differences, numbers, reference
from tests.equivalence.models import STEPS, cross_entropy, dense, optimized, rows, variables_of
from tests.equivalence.test_layouts import TRANSFORMER
from whale_tf.errors import PlanError

# Loops and fused normalizations are whole on every device, which is told.
pytestmark = pytest.mark.filterwarnings("ignore:.* cannot be cut over . devices:UserWarning")

WIDTH, WORDS, CLASSES, LENGTH, HEADS = 16, 24, 12, 6, 4
CHECK = "WHALE_TF_CHECK"

LAYOUTS = (
    Layout(split=2),
    Layout(split=4, micro_batches=2, schedule="gpipe", examples=13),
    Layout(replicas=2, split=2, micro_batches=2, examples=13),
    Layout(stages=2, split=2, micro_batches=3, schedule="zero_bubble"),
    Layout(replicas=2, stages=2, split=2, micro_batches=2, schedule="1f1b"),
    Layout(stages=2, split=2, micro_batches=4, schedule="interleaved", examples=14),
    Layout(replicas=2, split=2, shares=(3, 1), micro_batches=2),
)


@dataclass(frozen=True)
class Model:
    """Two parts of a model, each in a stage if there are two; the second gives the loss, and what else comes back."""

    first: Callable[[Any], Any]
    second: Callable[..., Any]
    layers: Sequence[Any]


def trained(scopes: Scopes, model: Model, batches: Sequence[tuple[Any, ...]], optimizer: Any = None) -> Training:
    variables = variables_of(model.layers)
    optimizer = optimized(optimizer or keras.optimizers.SGD(0.1, momentum=0.9), variables)

    def step(x: tf.Tensor, *targets: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            with scopes.stage(0):
                h = model.first(x)
            with scopes.stage(1):
                outputs = model.second(h, *targets)
        loss = outputs[0] if isinstance(outputs, tuple) else outputs
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return outputs

    return Training(step, batches, [*model.layers, optimizer])


def whole_numbers(examples: int, limit: int, *shape: int) -> list[Any]:
    drawn = np.random.default_rng(limit)
    return [drawn.integers(0, limit, size=(examples, *shape)).astype(np.int32) for _ in range(STEPS)]


def batches_of(examples: int, classes: int = CLASSES) -> list[tuple[Any, ...]]:
    return list(zip(rows(examples, WIDTH), whole_numbers(examples, classes), strict=True))


def texts(examples: int) -> list[tuple[Any, ...]]:
    """Words, and the next ones."""
    found = whole_numbers(examples, WORDS, LENGTH + 1)
    return [(each[:, :-1], each[:, 1:]) for each in found]


def embedding(**options: Any) -> Any:
    table = keras.layers.Embedding(WORDS, WIDTH, **options)
    table.build((None, LENGTH))
    return table


def hidden() -> list[Any]:
    return [dense(2 * WIDTH, WIDTH), dense(WIDTH, 2 * WIDTH)]


def through(layers: Sequence[Any], x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def mlp(scopes: Scopes, optimizer: Any = None) -> Training:
    first, second = hidden(), [*hidden(), dense(CLASSES, WIDTH, activation=None)]
    model = Model(lambda x: through(first, x), lambda h, y: cross_entropy(y, through(second, h)), [*first, *second])
    return trained(scopes, model, batches_of(scopes.examples), optimizer)


def adamw(scopes: Scopes) -> Training:
    """Sums of gradients that are nothing but rounding would become steps: epsilon is larger."""
    return mlp(scopes, keras.optimizers.AdamW(0.01, epsilon=1e-3))


def clipped(scopes: Scopes) -> Training:
    return mlp(scopes, keras.optimizers.SGD(0.1, global_clipnorm=0.05))


class Block(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A transformer's, of Keras' own layers, with dropout."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.before, self.between = keras.layers.LayerNormalization(), keras.layers.LayerNormalization()
        self.attention = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS, dropout=0.2, seed=seed)
        self.wide, self.narrow = dense(4 * WIDTH, WIDTH, activation="gelu"), dense(WIDTH, 4 * WIDTH, activation=None)
        self.dropout = keras.layers.Dropout(0.2, seed=seed)
        self.before.build((None, LENGTH, WIDTH))
        self.between.build((None, LENGTH, WIDTH))
        self.attention.build((None, LENGTH, WIDTH), (None, LENGTH, WIDTH))
        self.built = True

    def call(self, h: tf.Tensor) -> tf.Tensor:
        x = self.before(h)
        h += self.attention(x, x, training=True)
        return h + self.dropout(self.narrow(self.wide(self.between(h))), training=True)


def keras_transformer(scopes: Scopes) -> Training:
    table, blocks, head = embedding(), [Block(1), Block(2)], dense(WORDS, WIDTH, activation=None)
    model = Model(
        lambda x: blocks[0](table(x)), lambda h, y: cross_entropy(y, head(blocks[1](h))), [table, *blocks, head]
    )
    return trained(scopes, model, texts(scopes.examples))


def convolutions(scopes: Scopes) -> Training:
    wide = keras.layers.Conv2D(8, 3, padding="same", activation="relu")
    narrow, head = keras.layers.Conv2D(4, 3, strides=2, activation="relu"), dense(CLASSES, 16, activation=None)
    depth = keras.layers.DepthwiseConv2D(3, padding="same")
    wide.build((None, 6, 6, 3))
    depth.build((None, 6, 6, 8))
    narrow.build((None, 6, 6, 8))
    model = Model(
        lambda x: depth(wide(x)),
        lambda h, y: cross_entropy(y, head(tf.reshape(narrow(h), [-1, 16]))),
        [wide, depth, narrow, head],
    )
    targets = whole_numbers(scopes.examples, CLASSES)
    return trained(scopes, model, list(zip(rows(scopes.examples, 6, 6, 3), targets, strict=True)))


def experts(scopes: Scopes) -> Training:
    """A mixture of experts by einsum: what is cut are the experts' hidden dims."""
    gate, head = dense(4, WIDTH, activation=None), dense(CLASSES, WIDTH, activation=None)
    up, down = keras.layers.Layer(), keras.layers.Layer()
    up.kernel = up.add_weight(shape=(4, WIDTH, 2 * WIDTH), name="up")
    down.kernel = down.add_weight(shape=(4, 2 * WIDTH, WIDTH), name="down")

    def chosen(x: tf.Tensor) -> tf.Tensor:
        shares = tf.nn.softmax(gate(x))
        routed = tf.one_hot(tf.argmax(shares, -1), 4) * shares
        inner = tf.nn.relu(tf.einsum("end,edf->enf", tf.einsum("ne,nd->end", routed, x), up.kernel))
        return tf.einsum("enf,efo->no", inner, down.kernel)

    model = Model(chosen, lambda h, y: cross_entropy(y, head(h)), [gate, up, down, head])
    return trained(scopes, model, batches_of(scopes.examples))


def many_classes(scopes: Scopes) -> Training:
    """1000 classes: their metrics come back, and no member has all logits of an example."""
    first, head = hidden(), dense(1000, WIDTH, activation=None)

    def losses(h: tf.Tensor, y: tf.Tensor) -> Any:
        logits = head(h)
        accuracy = tf.reduce_mean(keras.metrics.sparse_top_k_categorical_accuracy(y, logits, k=200))
        return cross_entropy(y, logits), tf.argmax(logits, -1), tf.math.in_top_k(y, logits, 100), accuracy

    model = Model(lambda x: through(first, x), losses, [*first, head])
    return trained(scopes, model, batches_of(scopes.examples, 1000))


def tied_vocabulary(scopes: Scopes) -> Training:
    """The table is cut as the last product cuts it: the lookup finds rows of other members' words."""
    table, between = embedding(), hidden()

    def losses(h: tf.Tensor, y: tf.Tensor) -> Any:
        return cross_entropy(y, tf.einsum("btd,vd->btv", h, table.embeddings))

    model = Model(lambda x: through(between, table(x)), losses, [table, *between])
    return trained(scopes, model, texts(scopes.examples))


def table_by_rows(scopes: Scopes) -> Training:
    """No product with a parameter: the rows of the tables are cut."""
    table, other = embedding(), embedding()

    def losses(h: tf.Tensor, y: tf.Tensor) -> Any:
        return tf.reduce_mean(tf.reduce_sum(h * other(y), -1) ** 2)

    return trained(scopes, Model(table, losses, [table, other]), texts(scopes.examples))


def loops(scopes: Scopes) -> Training:
    """A loop runs whole on each member, beside a dense layer that is cut."""
    table, before, memory, head = embedding(), dense(WIDTH, WIDTH), keras.layers.LSTM(WIDTH), dense(WORDS, WIDTH)
    memory.build((None, LENGTH, WIDTH))
    model = Model(
        lambda x: before(table(x)),
        lambda h, y: cross_entropy(y[:, 0], head(memory(h))),
        [table, before, memory, head],
    )
    return trained(scopes, model, texts(scopes.examples))


def normalized(scopes: Scopes) -> Training:
    first, second, head = dense(2 * WIDTH, WIDTH), dense(WIDTH, 2 * WIDTH), dense(CLASSES, WIDTH)
    norm = keras.layers.BatchNormalization()
    norm.build((None, 2 * WIDTH))
    model = Model(
        lambda x: norm(first(x), training=True),
        lambda h, y: cross_entropy(y, head(second(h))),
        [first, norm, second, head],
    )
    return trained(scopes, model, batches_of(scopes.examples))


def one_part(layout: Layout) -> bool:
    """Parts of the batch have statistics of their own."""
    return layout.replicas == layout.micro_batches == 1


def one_stage(layout: Layout) -> bool:
    """What two stages share must be cut in both, or is cut where no product is."""
    return layout.stages == 1


MODELS = (
    Case(keras_transformer, tolerance=1e-4),
    Case(adamw, tolerance=1e-4),
    Case(clipped),
    Case(mlp),
    Case(convolutions),
    Case(experts, tolerance=1e-4),
    Case(many_classes),
    Case(tied_vocabulary),
    Case(table_by_rows),
    Case(loops, allows=one_stage),
    Case(normalized, allows=one_part),
)
BY_NAME = {str(case): case for case in MODELS}


def pairs() -> list[Any]:
    """Each model with each layout; one of them by rotation, all others are long."""
    found = []
    for i, case in enumerate(MODELS):
        allowed = [layout for layout in LAYOUTS if case.allows(layout)]
        for layout in allowed:
            marks = () if layout == allowed[i % len(allowed)] else pytest.mark.long
            found.append(pytest.param(case, layout, id=f"{case}-{layout}", marks=marks))
    return found


@pytest.mark.parametrize(("case", "layout"), pairs())
def test_training_with_operators_cut_equals_one_device(case: Case, layout: Layout) -> None:
    step, _ = check(case, layout)
    assert any(node.op == "Place" for node in step.compiled.program.main)


# The dims of what these cut first are odd.
REFUSED = {"gradients_of_each_example", "lstm"}


def each_case() -> list[Any]:
    """Every case of the other tests with two layouts, of which one by rotation is tried less often."""
    found = []
    for i, case in enumerate(case for case in (TRANSFORMER, *CASES) if str(case) not in REFUSED):
        for k, layout in enumerate((LAYOUTS[0], LAYOUTS[2])):
            marks = [pytest.mark.long, pytest.mark.longest][: 1 + (i + k) % 2]
            found.append(pytest.param(case, layout, id=f"{case}-{layout}", marks=marks))
    return found


@pytest.mark.parametrize(("case", "layout"), each_case())
def test_each_case_with_operators_cut_equals_one_device(case: Case, layout: Layout) -> None:
    if not case.allows(layout):
        pytest.skip("the case is not for such a layout")
    check(case, layout)


def test_a_strategy_says_which_devices_cut() -> None:
    case = BY_NAME["mlp"]
    want = reference(case, 16)
    whale.init(devices=4)
    keras.utils.set_random_seed(7)
    training = case.build(Scopes(Layout(stages=2, split=1)))
    step = whale.function(strategy=whale.Strategy(devices=((0, (1, 2)),)))(_second_stage_cut(training))
    assert differences(numbers(training, step), want, TOLERANCE) == []
    assert [step.plan.layout.mesh_of(0, stage) for stage in (0, 1)] == [(0,), (1, 2)]


def _second_stage_cut(training: Training) -> Callable[..., Any]:
    first, second, model = training.owners[:2], training.owners[2:5], training.owners[5]
    variables = variables_of([*first, *second])

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            with whale.stage():
                h = through(first, x)
            with whale.stage(devices=2), whale.split():
                loss = cross_entropy(y, through(second, h))
        model.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


@pytest.mark.parametrize("layout", [Layout(split=2), Layout(replicas=2, split=2, micro_batches=2)], ids=str)
def test_what_a_step_can_be_asked(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECK, "values")
    step, training = check(BY_NAME["tied_vocabulary"], layout)
    batch = training.batches[0]
    assert step.verify(*batch).largest < 10 * TOLERANCE
    step.timeline(tmp_path / "trace.json", *batch)
    step.save_graph(tmp_path / "graph")
    assert (tmp_path / "trace.json").exists()
    smaller = tuple(each[:5] for each in batch)
    assert step.verify(*smaller).largest < 10 * TOLERANCE


def test_a_step_without_gradients_is_cut() -> None:
    whale.init(devices=2)
    layers = [*hidden(), dense(CLASSES, WIDTH)]

    def step(x: tf.Tensor) -> tf.Tensor:
        with whale.split():
            return tf.nn.softmax(through(layers, x))

    evaluate = whale.function(micro_batches=2)(step)
    for examples in (8, 5):
        (x,) = rows(examples, WIDTH)[:1]
        np.testing.assert_allclose(evaluate(x), tf.nn.softmax(through(layers, x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_members_drop_the_same(micro_batches: int) -> None:
    """Operations with a hidden state draw for all members: the masks do not depend on how many there are."""
    found = []
    for devices in (2, 4):
        whale.init(devices=devices)
        keras.utils.set_random_seed(3)
        wide, narrow = dense(2 * WIDTH, WIDTH), dense(WIDTH, 2 * WIDTH)

        @whale.function(micro_batches=micro_batches)
        def step(x: tf.Tensor, wide: Any = wide, narrow: Any = narrow) -> Any:
            with whale.split():
                return narrow(tf.nn.dropout(wide(x), 0.5))

        found.append(step(rows(8, WIDTH)[0]).numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def with_python(x: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.numpy_function(lambda each: each + 1, [x], tf.float32), [8, WIDTH])


def test_effects_are_refused_with_their_line() -> None:
    whale.init(devices=2)
    layer, x = dense(WIDTH, WIDTH), rows(8, WIDTH)[0]

    @whale.function
    def step(x: tf.Tensor) -> Any:
        with whale.split():
            return layer(with_python(x))

    with pytest.raises(PlanError) as error:
        step(x)
    first, what, at, scope, way_out = str(error.value).splitlines()
    assert first == "each member of a mesh would run what has an effect or a hidden state."
    assert what == "  'PyFunc' (PyFunc)"
    assert "in with_python: return tf.ensure_shape(" in at
    assert "  in split() opened at" in scope
    assert way_out == "  Run it outside the step, or put it in a stage() of its own, without split()."


def test_effects_can_have_a_stage_of_their_own() -> None:
    whale.init(devices=3)
    layer, x = dense(WIDTH, WIDTH), rows(8, WIDTH)[0]

    @whale.function
    def step(x: tf.Tensor) -> Any:
        with whale.stage():
            x = with_python(x)
        with whale.stage(devices=2), whale.split():
            return layer(x)

    np.testing.assert_allclose(step(x), layer(x + 1), rtol=1e-5, atol=1e-6)


def test_members_check_and_print() -> None:
    whale.init(devices=2)
    layer, x = dense(WIDTH, WIDTH), rows(8, WIDTH)[0]

    @whale.function
    def step(x: tf.Tensor) -> Any:
        with whale.split():
            tf.debugging.assert_less(x, 100.0, "too large")
            return layer(x)

    np.testing.assert_allclose(step(x), layer(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        step(x + 100)
