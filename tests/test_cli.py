"""The command line: what it refuses, and how lines look. Runs with processes are in tests/world/test_launch.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from whale_tf.cli import RankedOutput, main


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.py"
    path.write_text("")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Error: Give the number of processes, -n, or the hosts.\n"),
        (["-n", "0"], "Error: Invalid value for '-n': 0 is not in the range x>=1.\n"),
        (["-n", "5", "--hosts", "a:2,b:2"], "Error: -n 5 is more than the 4 processes that the hosts take.\n"),
        (
            ["--hosts", "a", "--hostfile", __file__],
            "Error: --hosts and --hostfile say the same thing: give one of them.\n",
        ),
        (["--timeout", "0", "-n", "2"], "Error: Invalid value for '--timeout': 0.0 is not in the range x>0.\n"),
        (
            ["--hosts", "a:b"],
            "Error: cannot read the hosts in --hosts.\n  'a:b' is not a host and its number of ranks\n"
            "  Give them as a:2,b:2 with --hosts, or one `a:2` a line with --hostfile.\n",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: list[str], told: str, script: str) -> None:
    result = CliRunner().invoke(main, ["run", *arguments, script])
    assert result.exit_code != 0
    assert result.stderr.endswith(told)


def test_a_script_that_is_not_there_is_refused() -> None:
    result = CliRunner().invoke(main, ["run", "-n", "2", "nowhere.py"])
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, "Error: There is no script 'nowhere.py'.")


def test_the_help_names_every_option() -> None:
    text = CliRunner().invoke(main, ["run", "--help"]).stdout
    for option in ("-n", "-m", "--hosts", "--hostfile", "--log-dir", "--timeout", "--grace", "--mpiexec-options"):
        assert f"  {option} " in text


def test_each_line_has_its_rank(capfd: pytest.CaptureFixture[str]) -> None:
    output = RankedOutput(12, None)
    output.output(3, 1, b"a\n\nb\n")
    output.output(11, 2, b"c\n")
    assert capfd.readouterr() == ("[ 3] a\n[ 3] \n[ 3] b\n", "[11] c\n")


def test_ranks_have_colors_where_there_are_any(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    output = RankedOutput(2, None)
    output.output(0, 1, b"a\n")
    output.output(1, 1, b"b\n")
    assert capfd.readouterr().out == "\x1b[36m[0]\x1b[0m a\n\x1b[32m[1]\x1b[0m b\n"
