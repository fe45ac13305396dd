"""Training whose gradients a process's devices reduce by a collective gives the numbers of one device.

On logical CPU devices, over TensorFlow's ring; GPUs run the same program over NCCL, which no test has.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.equivalence.cases import CASES
from tests.equivalence.harness import TOLERANCE, Case, Layout, check
from tests.equivalence.in_processes import choices
from tests.equivalence.test_layouts import TRANSFORMER
from tests.world.runs import ROOT, Runs, checked
from whale_tf.plan import buckets

BY_NAME = {str(case): case for case in CASES}
CHOICES = (
    ("adam", Layout(replicas=2)),
    ("adam", Layout(replicas=4, micro_batches=4, examples=19)),
    ("convolutions", Layout(replicas=2, stages=2, micro_batches=4)),
    ("slices", Layout(replicas=2, stages=2)),
    ("clip_by_global_norm", Layout(replicas=2, shares=(3, 1), micro_batches=4)),
    ("adam", Layout(replicas=2, stages=4, shares=(1, 2), micro_batches=2, places=((0, 0, 1, 1), (2, 3, 4, 5)))),
    ("gan_in_turns", Layout(replicas=4)),
    ("mixed_float16", Layout(replicas=2, stages=2, micro_batches=2, schedule="zero_bubble")),
    ("loss_that_is_a_sum", Layout(replicas=4, stages=2, schedule="interleaved")),
)
SCRIPT = """
from tests.equivalence import in_processes
from whale_tf.plan import buckets

buckets.COLLECTIVE_KINDS = frozenset({"CPU"})
in_processes.main()
"""


@pytest.fixture(autouse=True)
def on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "COLLECTIVE_KINDS", frozenset({"CPU"}))


@pytest.mark.parametrize(
    ("case", "layout"), [pytest.param(BY_NAME[name], layout, id=f"{name}-{layout}") for name, layout in CHOICES]
)
def test_training_by_collectives_equals_one_device(case: Case, layout: Layout) -> None:
    step, training = check(case, layout)
    assert step.plan.collective == tuple(range(len(step.plan.buckets))) != ()
    assert any(node.op == "Reduce" for node in step.compiled.program.main)
    args, keywords = next(iter(training.calls()))
    assert step.verify(*args, **keywords).largest < max(10 * TOLERANCE, case.tolerance)


def test_a_step_by_collectives_can_be_timed(tmp_path: Path) -> None:
    step, training = check(BY_NAME["adam"], Layout(replicas=2, micro_batches=2))
    step.timeline(tmp_path / "trace.json", *training.batches[0])
    assert (tmp_path / "trace.json").exists()


def test_processes_that_reduce_by_collectives_equal_one_device(tmp_path: Path) -> None:
    """Two processes of two devices or more: what a process has reduced is added up over MPI."""
    numbers = [i for i, (case, layout) in enumerate(choices(2)) if case is TRANSFORMER and layout.replicas == 4]
    environment = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    for runs in checked(Runs(tmp_path, environment=environment, bound_seconds=550.0)):
        script = tmp_path / "reduce.py"
        script.write_text(SCRIPT)
        code, _, errors = runs.run("-n", "2", "--timeout", "60", str(script), str(tmp_path), "2", *map(str, numbers))
        assert code == 0, errors
        for rank in range(2):
            found = [json.loads(line) for line in (tmp_path / f"{rank}.jsonl").read_text().splitlines()]
            assert found == [[number, []] for number in numbers]
