"""On a terminal: the same lines, and a bar that counts epochs and goes away."""

import io
import pickle
from types import SimpleNamespace

from rich.console import Console

from ray_recsys.commands.terminal import TerminalReporter
from ray_recsys.distributed.tuning import _TrialReporter
from ray_recsys.progress import EpochFinished, Warned


def shown(*, is_terminal: bool, epochs: int) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=140, color_system=None)
    with TerminalReporter("train", console) as report:
        report("starting [bold] 2 workers")
        for number in range(1, epochs + 1):
            report(EpochFinished(number, 3, 0.5, 1000.0, "NDCG@10", {"NDCG@10": 0.1}, seconds=60.0))
        report(Warned("a tracker failed"))
        report(EpochFinished(1, 2, 0.5, 1000.0, stage="refit"))
    return stream.getvalue()


def test_lines_are_kept_above_a_bar_over_the_epochs() -> None:
    text = shown(is_terminal=True, epochs=2)
    assert "s] starting [bold] 2 workers" in text
    assert "s] epoch 2: loss 0.5000, validation NDCG@10 0.1000, 1,000 samples/s, at most 60 s left" in text
    assert "s] warning: a tracker failed" in text
    assert "train  " in text
    assert "1/3" in text
    assert "at most 2 min left" in text
    assert "refit " in text
    assert text.rstrip().endswith("\x1b[2K")  # the bar is wiped: the terminal is left as lines alone


def test_a_search_on_a_terminal_keeps_its_callbacks_in_a_file() -> None:
    kept = pickle.loads(pickle.dumps(_TrialReporter(TerminalReporter("tune"))))
    kept.on_trial_error(1, [], SimpleNamespace(config={}))  # to nobody: a resumed search sets its own reporter


def test_an_early_end_leaves_no_bar_behind() -> None:
    assert shown(is_terminal=True, epochs=0).count("train ━") == 0
