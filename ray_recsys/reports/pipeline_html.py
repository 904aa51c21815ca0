"""A run of the pipeline as one self-contained HTML page: the live version, the stages, and the test metrics."""

from ray_recsys.core.workflows.pipeline import PipelineResult
from ray_recsys.core.workflows.stage_records import StageRecord
from ray_recsys.reports.page import cards, header, table, write_page
from ray_recsys.storage.location import LocationLike


def write_html(result: PipelineResult, path: LocationLike) -> None:
    """Writes the page; an existing file is replaced once the new one is complete."""
    write_page(path, f"Pipeline: {result.output.name}", lambda _: _body(result))


def _body(result: PipelineResult) -> list[str]:
    evaluation = result.evaluation
    facts = {
        "published": "no" if result.refusal else "yes",
        "live version": result.live or "none",
        "users evaluated": f"{evaluation.num_users:,}",
        "seconds": f"{sum(record.seconds for record in result.stages if record.status != 'skipped'):,.0f}",
    }
    models = list(evaluation.models.values())
    labels = list(dict.fromkeys(label for model in models for label in model.metrics))
    metrics = [
        (label, *(_cell(model.metrics.get(label), model.standard_errors.get(label)) for model in models))
        for label in labels
    ]
    gate = result.gate.describe() if result.gate is not None else "skipped: nothing has changed since it was passed"
    return [
        header("Pipeline", f"{result.output} → {result.registry}"),
        cards(facts),
        "<h2>Quality gate</h2>",
        table(("", ""), [("gate", gate), *([("refused", result.refusal)] if result.refusal else [])], is_text=True),
        "<h2>Stages</h2>",
        table(("stage", "status", "seconds", "inputs", "result"), [_row(record) for record in result.stages]),
        f"<h2>{evaluation.protocol} ranking of {evaluation.split}, ± standard error over users</h2>",
        table(("metric", *evaluation.models), metrics),
    ]


def _row(record: StageRecord) -> tuple[str, str, str, str, str]:
    figures = {name: value for name, value in record.result.items() if isinstance(value, int | str)}
    shown = ", ".join(f"{name} {value}" for name, value in figures.items() if name in _SHOWN)
    return record.stage, record.status, f"{record.seconds:,.1f}", record.digest, shown


_SHOWN = ("num_users", "num_items", "num_training", "num_epochs", "best_epoch", "num_held_out", "version", "live")


def _cell(value: float | None, error: float | None) -> str:
    return "" if value is None else f"{value:.4f}" + ("" if error is None else f" ±{error:.4f}")
