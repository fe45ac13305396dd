"""Peak memory: live bytes of a step under 1f1b and under gpipe, against what the schedules predict.

A stage keeps what its forward leaves for its backward, its residuals, for each micro-batch that is between the two. A
schedule predicts residual bytes × the most such micro-batches. What a step holds besides is the same under both
schedules, so the claim is on the difference of the two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import MEBIBYTES, SMALL, Claim, Measured, arguments, report
from benchmarks.peak_memory.one_step import MEASURED, MICRO_BATCHES

SCHEDULES = ("gpipe", "1f1b")
STAGES = (2, 4)


def build_counter(folder: Path) -> Path:
    """Compiles live_bytes.c; the compiler is $CC, or cc."""
    library = folder / "live_bytes.so"
    source = Path(__file__).with_name("live_bytes.c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def one_step(counter: Path, options: Sequence[str]) -> tuple[float, float]:
    """Measured and predicted bytes, from a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peak_memory.one_step", *options],
        stdout=subprocess.PIPE,
        env={**os.environ, "LD_PRELOAD": str(counter), "TF_ENABLE_ONEDNN_OPTS": "0"},
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["measured"], found["predicted"]


def main() -> None:
    """Measures and prints, first for 2 stages and then for 4."""
    options = arguments(__doc__ or "", rounds=3, steps=3).parse_args()
    small = ["--small"] if options.small else []
    with tempfile.TemporaryDirectory() as folder:
        counter = build_counter(Path(folder))
        for stages in STAGES:
            wanted = ["--stages", str(stages), "--steps", str(options.steps), *small]
            found: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                for schedule in SCHEDULES:
                    measured, predicted = one_step(counter, ["--schedule", schedule, *wanted])
                    found.setdefault(f"{schedule}, measured", []).append(measured)
                    found.setdefault(f"{schedule}, predicted", []).append(predicted)
            for kind in ("measured", "predicted"):
                pairs = zip(found[f"gpipe, {kind}"], found[f"1f1b, {kind}"], strict=True)
                found[f"saved, {kind}"] = [gpipe - ours for gpipe, ours in pairs]
            report(
                f"Peak memory, {stages} stages x {MICRO_BATCHES} micro-batches: {SMALL if options.small else MEASURED}",
                [Measured(name, tuple(values)) for name, values in sorted(found.items())],
                [Claim("saved, measured", "saved, predicted", at_least=0.8, at_most=1.2)],
                MEBIBYTES,
            )


if __name__ == "__main__":
    main()
