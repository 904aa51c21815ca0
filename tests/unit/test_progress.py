"""Progress goes to stderr, one line per event; stdout is reserved for results."""

import re

import pytest

from ray_recsys.progress import EpochFinished, StderrReporter, TrainingRestarted, Warned, silent


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


def test_events_are_shown_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    report = StderrReporter("train")
    report(
        EpochFinished(
            3, num_epochs=20, loss=0.35124, samples_per_s=409_657.8, metric="NDCG@10", metrics={"NDCG@10": 0.03851}
        )
    )
    report(EpochFinished(4, num_epochs=20, loss=0.5, samples_per_s=1000.0))
    report(EpochFinished(5, num_epochs=20, loss=0.5, samples_per_s=1000.0, seconds=2.0))
    report(EpochFinished(6, num_epochs=20, loss=0.5, samples_per_s=1000.0, seconds=100.0))
    report(EpochFinished(20, num_epochs=20, loss=0.5, samples_per_s=1000.0, seconds=2.0))
    report(TrainingRestarted(3))
    report(TrainingRestarted(3, step=17))
    report(Warned("a file is missing"))
    lines = [line.partition(" s] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "epoch 3: loss 0.3512, validation NDCG@10 0.0385, 409,658 samples/s",
        "epoch 4: loss 0.5000, 1,000 samples/s",
        "epoch 5: loss 0.5000, 1,000 samples/s, at most 30 s left",
        "epoch 6: loss 0.5000, 1,000 samples/s, at most 23 min left",
        "epoch 20: loss 0.5000, 1,000 samples/s",
        "a worker was lost; resumed after epoch 3",
        "a worker was lost; resumed after epoch 3, step 17 of the next",
        "warning: a file is missing",
    ]
