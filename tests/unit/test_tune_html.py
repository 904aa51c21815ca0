"""The page of a search holds its plots and its table, and refers to nothing outside itself."""

import re
from pathlib import Path

import pytest

from ray_recsys.core.training.trials import Trial
from ray_recsys.reports.tune_html import write_html

pytest.importorskip("matplotlib")


def trial(rate: float, width: int, curve: tuple[float, ...], error: str | None = None) -> Trial:
    return Trial(
        values={"train.learning_rate": rate, "model.embedding_dim": width, "model.name": "<neumf>"},
        num_epochs=len(curve),
        best_epoch=len(curve),
        metrics={"NDCG@10": curve[-1]} if curve else {},
        seconds=3.2,
        error=error,
        curve=curve,
    )


def test_the_page_shows_every_trial_and_what_stopping_saved(tmp_path: Path) -> None:
    trials = [
        trial(0.01, 32, (0.1, 0.2, 0.31)),
        trial(0.001, 8, (0.05,)),
        trial(1.0, 16, (), error="training diverged"),
    ]
    write_html(trials, "NDCG@10", 3, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf8")
    assert page.count("<svg") == 3
    assert page.count("<tr>") == 1 + len(trials)
    assert "0.3100" in page
    assert "56%" in page  # 4 of 9 epochs were trained
    assert "training diverged" in page
    assert "&lt;neumf&gt;" in page
    assert "<neumf>" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)


def test_values_that_are_all_equal_and_a_single_trial_are_drawn(tmp_path: Path) -> None:
    write_html([trial(0.01, 8, (0.2,))], "NDCG@10", 1, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf8").count("<svg") == 3
