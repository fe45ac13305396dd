"""One process of a contender: makes the model and its steps, and takes steps in its turns.

python -m benchmarks.processes_pipeline.contender {whale,alone} [--small] [--schedule 1f1b]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import whale_tf as whale
from benchmarks.groups import serve, use_one_core
from benchmarks.measure import SMALL
from benchmarks.model import Size, Training, pipelined, tokens
from benchmarks.pipeline.contender import MICRO_BATCHES, looped_step, unrolled_step

# Stages of equal cost: with this vocabulary, the head's logits cost about one block more than the embedding.
LAYERS = 5
CUTS = (3,)
VOCABULARY = 3072


def size_of(small: bool) -> Size:
    """The model of all contenders."""
    return replace(SMALL, layers=LAYERS) if small else replace(Size(), layers=LAYERS, vocabulary=VOCABULARY)


def main() -> None:
    """Serves turns until the benchmark ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("contender", choices=["whale", "alone"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--schedule", default="1f1b", help="whale's schedule")
    options = parser.parse_args()
    use_one_core()
    size = size_of(options.small)
    x, y = tokens(size)
    if options.contender == "whale":
        whale.init(devices=1)
        step = pipelined(Training(size, cuts=CUTS), MICRO_BATCHES, options.schedule)
        serve({"step": lambda: step(x, y)})
    else:
        unrolled, looped = unrolled_step(Training(size)), looped_step(Training(size))
        serve({"unrolled loop": lambda: unrolled(x, y), "while loop": lambda: looped(x, y)})


if __name__ == "__main__":
    main()
