"""How an end is put in words."""

from __future__ import annotations

import pytest

from whale_tf.world.ending import describe_status, exit_code, last_traceback, summary

RAISED = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    step()
whale_tf.errors.RunError: rank 1 failed: no.
  Look there.
"""


@pytest.mark.parametrize(
    ("status", "words", "code"),
    [
        (0, "exit code 0", 0),
        (3, "exit code 3", 3),
        (-9, "killed by SIGKILL (signal 9)", 137),
        (-40, "killed by a signal (signal 40)", 168),
    ],
)
def test_a_status(status: int, words: str, code: int) -> None:
    assert (describe_status(status), exit_code(status)) == (words, code)


def test_only_an_exception_that_ended_the_process_is_shown() -> None:
    assert last_traceback(f"before\n{RAISED}", 1) == RAISED.rstrip()
    assert last_traceback(RAISED, 3) == ""
    assert last_traceback("Fatal Python error: Aborted\n\nThread 1\n", -6) == "Fatal Python error: Aborted\n\nThread 1"
    assert last_traceback(RAISED, -9) == ""


def test_the_summary_is_the_last_error() -> None:
    assert summary(RAISED) == "RunError: rank 1 failed: no"
    assert summary(RAISED + "\nDuring ...\n\n" + RAISED.replace("whale_tf.errors.RunError", "KeyError")).startswith(
        "KeyE"
    )
    assert summary("Traceback (most recent call last):\n  File 'x'\nKeyboardInterrupt\n") == "KeyboardInterrupt"
    assert summary("Fatal Python error: Aborted") == ""
