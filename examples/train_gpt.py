"""Trains a small GPT on the source code of Python's own standard library, byte by byte, then lets it write some.

    python examples/train_gpt.py

Four devices: two replicas of a pipeline of two stages, each replica's part of a batch in four micro-batches. The
training step is the one-device step with two `with` lines in it. It prints the plan and the schedule, trains, writes
some Python, saves the timeline of a step for Perfetto, and compares a step with the same step on one device.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import whale_tf as whale

BYTES = 256
HEAD_WIDTH = 32
WARM_UP = 0.1  # of all steps


def main() -> None:
    """Data, model, step, train, sample: the story, then what whale_tf has to tell about it."""
    options = read_options()
    began = time.perf_counter()
    whale.init(devices=options.devices)
    keras.utils.set_random_seed(20)

    batches = random_batches(python_source(), options.batch, options.sequence)
    parts = model_in_parts(options)
    model = keras.Sequential([keras.Input((options.sequence,), dtype="int32"), *parts], name="gpt")
    optimizer = keras.optimizers.AdamW(TriangleRate(options.rate, options.steps), beta_2=0.98, weight_decay=0.01)
    optimizer.build(model.trainable_variables)
    step = training_step(parts, model, optimizer, options)

    print(
        f"{model.count_params():,} parameters, {options.batch} x {options.sequence} bytes a step. Building the step ..."
    )
    batch = next(batches)
    print(step.prepare(batch))
    first_loss = float(step(batch))
    last_loss = train(step, batches, options)
    print(f"loss {first_loss:.3f} at first, {last_loss:.3f} at last")

    step.gather()  # of several processes each has its own stages' parameters
    print(f"\n{sample(model, options)}\n")

    timeline = options.out / "timeline.json"
    timeline.parent.mkdir(parents=True, exist_ok=True)
    step.timeline(str(timeline))
    print(f"The timeline is {timeline}: open it at https://ui.perfetto.dev, or draw it with")
    print(f"  python examples/draw_timeline.py {timeline} {timeline.with_suffix('.svg')}")
    if options.verify:
        print(f"Beside one device: {step.verify(next(batches)).summary}")
    print(f"{time.perf_counter() - began:.0f} seconds in all")


def python_source() -> np.ndarray:
    """The modules of the standard library in alphabetical order, as one array of bytes."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return np.frombuffer(b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py"))), np.uint8)


def random_batches(source: np.ndarray, batch: int, sequence: int) -> Iterator[tf.Tensor]:
    """Pieces from random places, [batch, sequence + 1]: each byte is the target of the bytes before it.

    The default steps see less than half of the source once, so the training loss is that of text not seen before.
    """
    random = np.random.default_rng(20)
    pieces = np.lib.stride_tricks.sliding_window_view(source, sequence + 1)
    while True:
        yield tf.constant(pieces[random.integers(len(pieces), size=batch)], tf.int32)


class Embed(layers.Layer):
    """Each byte's vector plus its position's: [batch, sequence] to [batch, sequence, width]."""

    def __init__(self, sequence: int, width: int) -> None:
        super().__init__()
        normal = keras.initializers.RandomNormal(stddev=0.5)
        self.bytes = layers.Embedding(BYTES, width, normal)
        self.positions = self.add_weight((sequence, width), normal.clone(), name="positions")

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        return self.bytes(tokens) + self.positions


def block(sequence: int, width: int) -> keras.Model:
    """Causal attention and a perceptron, each behind a norm and beside a short cut."""
    x = keras.Input((sequence, width))
    normed = layers.LayerNormalization()(x)
    attention = layers.MultiHeadAttention(max(1, width // HEAD_WIDTH), HEAD_WIDTH, use_bias=False)
    attended = x + attention(normed, normed, use_causal_mask=True)
    normed = layers.LayerNormalization()(attended)
    hidden = layers.Dense(4 * width, activation="gelu")(normed)
    return keras.Model(x, attended + layers.Dense(width)(hidden))


def model_in_parts(options: argparse.Namespace) -> list[keras.Model]:
    """One Keras model per stage: embedding first, blocks spread evenly, logits [batch, sequence, BYTES] last."""
    sequence, width, stages = options.sequence, options.width, options.stages
    parts = []
    for j in range(stages):
        begins = [keras.Input((sequence,), dtype="int32"), Embed(sequence, width)]
        ends = [layers.LayerNormalization(), layers.Dense(BYTES)]
        blocks = (j + 1) * options.layers // stages - j * options.layers // stages
        part = begins if j == 0 else [keras.Input((sequence, width))]
        part += [block(sequence, width) for _ in range(blocks)]
        part += ends if j == stages - 1 else []
        parts.append(keras.Sequential(part, name=f"stage_{j}"))
    return parts


class TriangleRate(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to `peak` in a straight line, then falls to a hundredth of it by the last step."""

    def __init__(self, peak: float, steps: int) -> None:
        self.peak, self.steps = peak, steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        done = tf.cast(step, tf.float32) / self.steps
        rises = done / WARM_UP + 1 / self.steps
        falls = (1 - done) / (1 - WARM_UP)
        return self.peak * tf.maximum(tf.minimum(rises, falls), 0.01)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps}


def training_step(
    parts: list[keras.Model], model: keras.Model, optimizer: keras.optimizers.Optimizer, options: argparse.Namespace
) -> Any:
    """The step as for one device; the decorator and the two scopes are all that makes it run on many."""

    @whale.function(micro_batches=options.micro_batches, schedule=options.schedule)
    def step(text: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            with whale.replica(options.replicas):
                hidden = text[:, :-1]
                for part in parts:
                    with whale.stage():
                        hidden = part(hidden)
                losses = keras.losses.sparse_categorical_crossentropy(text[:, 1:], hidden, from_logits=True)
                loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


def train(step: Callable[[tf.Tensor], tf.Tensor], batches: Iterator[tf.Tensor], options: argparse.Namespace) -> float:
    """Runs the steps after the first; returns the last loss."""
    columns = (
        TextColumn("loss {task.fields[loss]:.3f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} examples/s"),
        TimeRemainingColumn(),
    )
    loss = float("nan")
    with Progress(*columns) as progress:
        bar = progress.add_task("train", total=options.steps, completed=1, loss=loss, rate=0.0)
        began = time.perf_counter()
        for i in range(2, options.steps + 1):
            loss = float(step(next(batches)))
            rate = (i - 1) * options.batch / (time.perf_counter() - began)
            progress.update(bar, completed=i, loss=loss, rate=rate)
            if i % max(1, options.steps // 10) == 0:
                progress.console.print(f"step {i:4}   loss {loss:.3f}   {rate:.0f} examples/s")
    return loss


def sample(model: keras.Model, options: argparse.Namespace, *, temperature: float = 0.8) -> str:
    """Writes on from a prompt; the trained model is plain Keras, and this function knows nothing of whale_tf."""

    @tf.function
    def logits_after(tokens: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        return model(tokens)[:, position]

    written = list(b"def ")
    for _ in range(options.sample):
        window = written[-options.sequence :]
        padded = window + [0] * (options.sequence - len(window))  # comes after the position that is asked for: unseen
        logits = logits_after(tf.constant([padded]), tf.constant(len(window) - 1))
        written.append(int(tf.random.categorical(logits / temperature, 1)[0, 0]))
    return bytes(written).decode(errors="replace")


def read_options() -> argparse.Namespace:
    """The command line; the defaults take a minute or two on two cores."""
    parser = argparse.ArgumentParser(
        description="Trains a small GPT on Python's standard library, over replicas and pipeline stages.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--batch", type=int, default=64, help="examples in a global batch")
    parser.add_argument("--sequence", type=int, default=64, help="bytes in an example")
    parser.add_argument("--width", type=int, default=128, help="size of a byte's vector")
    parser.add_argument("--layers", type=int, default=2, help="transformer blocks")
    parser.add_argument("--rate", type=float, default=1e-2, help="highest learning rate")
    parser.add_argument("--devices", type=int, default=4, help="devices to find, or to make of the CPU")
    parser.add_argument("--replicas", type=int, default=2, help="copies of the pipeline")
    parser.add_argument("--stages", type=int, default=2, help="stages of the pipeline")
    parser.add_argument("--micro-batches", type=int, default=4, help="parts of each replica's share of a batch")
    schedules = ("1f1b", "gpipe", "interleaved", "zero_bubble")
    parser.add_argument("--schedule", choices=schedules, default="1f1b", help="order of the micro-batches")
    parser.add_argument("--sample", type=int, default=300, help="bytes to write at the end")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the timeline")
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, default=True, help="compare with one device")
    options = parser.parse_args()
    if options.layers < options.stages:
        parser.error(f"--stages {options.stages} needs as many --layers or more, and there are {options.layers}")
    if options.steps < 2:
        parser.error(f"--steps must be 2 or more, and is {options.steps}: the first step builds, the others are timed")
    return options


if __name__ == "__main__":
    main()
