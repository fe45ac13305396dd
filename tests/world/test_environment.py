"""Rank and size from what launchers leave behind."""

from __future__ import annotations

import json

import pytest

from whale_tf.errors import DeviceError
from whale_tf.world.environment import Environment, read_environment, read_timeout

CLUSTER = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "evaluator": ["d:1"]}


@pytest.mark.parametrize(
    ("environ", "rank", "size"),
    [
        ({}, 0, 1),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, 2, 4),
        ({"PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}, 1, 3),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}, 5, 8),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, 0, 1),  # the batch script itself
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, 1, 2),
        ({"WHALE_TF_RANK": "0", "WHALE_TF_SIZE": "1", "PMI_RANK": "1", "PMI_SIZE": "2"}, 0, 1),
        ({"TF_CONFIG": json.dumps({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}})}, 0, 3),
        ({"TF_CONFIG": json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 1}})}, 2, 3),
        ({"TF_CONFIG": "{}"}, 0, 1),
    ],
)
def test_rank_and_size(environ: dict[str, str], rank: int, size: int) -> None:
    found = read_environment(environ)
    assert (found.rank, found.size) == (rank, size)


def test_it_prints_its_source() -> None:
    assert str(Environment(2, 4, "PMI_RANK, PMI_SIZE")) == "rank 2 of 4 (PMI_RANK, PMI_SIZE)"


@pytest.mark.parametrize(
    ("environ", "details"),
    [
        ({"PMI_RANK": "2"}, "  PMI_RANK is '2'\n  PMI_SIZE is not set\n  expected two whole numbers\n"),
        (
            {"PMI_RANK": "4", "PMI_SIZE": "4"},
            "  PMI_RANK is '4'\n  PMI_SIZE is '4'\n  expected a rank from 0 to one below the size\n",
        ),
        ({"PMI_RANK": "x", "PMI_SIZE": "4"}, "  PMI_RANK is 'x'\n  PMI_SIZE is '4'\n  expected two whole numbers\n"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(environ: dict[str, str], details: str) -> None:
    with pytest.raises(DeviceError) as caught:
        read_environment(environ)
    assert str(caught.value) == (
        "PMI_RANK and PMI_SIZE do not say which process this is.\n"
        f"{details}  Start the processes with `whale run`, or unset PMI_RANK and PMI_SIZE."
    )


def test_numbers_given_twice_must_agree() -> None:
    with pytest.raises(DeviceError) as caught:
        read_environment({"PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"})
    assert str(caught.value) == (
        "OMPI_COMM_WORLD_RANK and PMIX_RANK do not say which process this is.\n"
        "  OMPI_COMM_WORLD_RANK is '2'\n"
        "  PMIX_RANK is '1'\n"
        "  expected the same number in both\n"
        "  Start the processes with `whale run`, or unset OMPI_COMM_WORLD_RANK and PMIX_RANK."
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": 3}', '{"cluster": {"worker": 2}, "task": {}}'])
def test_a_malformed_tf_config_is_refused(text: str) -> None:
    with pytest.raises(DeviceError) as caught:
        read_environment({"TF_CONFIG": text})
    assert str(caught.value) == (
        "TF_CONFIG does not say which process this is.\n"
        f"  TF_CONFIG is {text!r}\n"
        '  expected JSON like {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}\n'
        "  Start the processes with `whale run`, or unset TF_CONFIG."
    )


@pytest.mark.parametrize("task", [{"type": "evaluator", "index": 0}, {"type": "worker", "index": 2}, {}])
def test_a_task_that_does_not_train_is_refused(task: dict[str, object]) -> None:
    with pytest.raises(DeviceError, match="expected a task that is a chief or worker of its cluster"):
        read_environment({"TF_CONFIG": json.dumps({"cluster": CLUSTER, "task": task})})


def test_the_timeout_is_a_number_of_seconds() -> None:
    assert read_timeout({}) == 300.0
    assert read_timeout({"WHALE_TF_TIMEOUT": "2.5"}) == 2.5
    with pytest.raises(DeviceError) as caught:
        read_timeout({"WHALE_TF_TIMEOUT": "soon"})
    assert str(caught.value) == (
        "WHALE_TF_TIMEOUT is no time.\n"
        "  WHALE_TF_TIMEOUT is 'soon'\n"
        "  expected a number of seconds above 0\n"
        "  Start the processes with `whale run`, or unset WHALE_TF_TIMEOUT."
    )
