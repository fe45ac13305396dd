"""Variables stay with the stages that use them, and are brought to the others when asked for."""

from __future__ import annotations

from pathlib import Path

from tests.world.runs import Runs


def test_variables_stay_with_their_stages_and_are_gathered(runs: Runs) -> None:
    script = str(Path(__file__).with_name("gathering.py"))
    code, output, errors = runs.run("-n", "2", "--timeout", "60", script, str(runs.folder))
    assert code == 0, errors
    assert output.count("all is as expected\n") == 2


def test_an_update_under_a_condition_stays_with_its_stage(runs: Runs) -> None:
    code, output, errors = runs.run("-n", "2", "--timeout", "60", str(Path(__file__).with_name("updating.py")))
    assert code == 0, errors
    assert output.count("all is as expected\n") == 2
