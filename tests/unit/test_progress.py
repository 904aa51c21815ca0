"""Progress goes to stderr, one line a step, and stdout stays free for results."""

import re

import pytest

from ray_recsys.progress import StderrReporter, silent


def test_line_has_stage_time_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    report = StderrReporter("prepare")
    report("counted 10 rows")
    report("done")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [re.sub(r"\d+\.\d", "T", line) for line in lines] == [
        "[prepare     T s] counted 10 rows",
        "[prepare     T s] done",
    ]


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent("anything")
    assert capsys.readouterr() == ("", "")
