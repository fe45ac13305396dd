"""What a step tells the world is told once per step, with the numbers of one device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

from tests.equivalence.harness import Case, Layout, Scopes, Training, fresh, numbers, parallel
from tests.equivalence.models import classified, classifier, cross_entropy, optimized, variables_of

LAYOUTS = (
    Layout(replicas=2),
    Layout(micro_batches=4),
    Layout(replicas=2, stages=2, micro_batches=4),
    Layout(stages=4, micro_batches=4, schedule="zero_bubble"),
)


def telling(tell: Callable[[tf.Tensor, Any], None]) -> Case:
    """The usual classifier, whose step tells its loss and how many steps there were, inside the replica scope."""

    def build(scopes: Scopes) -> Training:
        blocks = classifier()
        variables = variables_of(blocks)
        optimizer = optimized(keras.optimizers.SGD(0.1), variables)

        def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape, scopes.replica:
                loss = cross_entropy(y, scopes.through(blocks, x))
                tell(loss, optimizer.iterations.value)
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        return Training(step, classified(scopes.examples), [*blocks, optimizer])

    return Case(build)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_prints_once_per_step(layout: Layout, tmp_path: Path) -> None:
    def printing(file: Path) -> Case:
        return telling(lambda loss, count: tf.print("loss", loss, "of", count, output_stream=f"file://{file}"))

    step, training = parallel(printing(tmp_path / "divided"), layout)
    numbers(training, step)
    plain = fresh(printing(tmp_path / "plain"), Layout())
    numbers(plain, tf.function(plain.step))
    divided, wanted = (
        [line.split() for line in (tmp_path / name).read_text().splitlines()] for name in ("divided", "plain")
    )
    assert [line[2:] for line in divided] == [line[2:] for line in wanted]
    assert [float(line[1]) for line in divided] == pytest.approx([float(line[1]) for line in wanted], rel=1e-5)


def scalars(folder: Path) -> list[tuple[int, float]]:
    """Step and value of every scalar that was written."""
    found = []
    for file in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            found += [(event.step, float(tf.make_ndarray(value.tensor))) for value in event.summary.value]
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_summaries_are_written_once_per_step(layout: Layout, tmp_path: Path) -> None:
    def write(loss: tf.Tensor, count: Any) -> None:
        tf.summary.write("loss", loss, step=count)

    def run(folder: Path, divided: bool) -> None:
        writer = tf.summary.create_file_writer(str(folder))
        case = telling(write)
        with writer.as_default():
            if divided:
                step, training = parallel(case, layout)
            else:
                training = fresh(case, Layout())
                step = tf.function(training.step)
            numbers(training, step)
        writer.close()

    run(tmp_path / "divided", True)
    run(tmp_path / "plain", False)
    divided, wanted = scalars(tmp_path / "divided"), scalars(tmp_path / "plain")
    assert [step for step, _ in divided] == [step for step, _ in wanted] == [0, 1, 2]
    assert [value for _, value in divided] == pytest.approx([value for _, value in wanted], rel=1e-5)
