"""An evaluation as one self-contained HTML page: models and baselines with intervals, buckets, two-stage curves."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ray_recsys.core.evaluation.result import BucketMetrics, EvaluationResult, ModelMetrics
from ray_recsys.core.evaluation.two_stage import TwoStageResult
from ray_recsys.reports.page import COLOR, Plot, cards, figure, header, table, write_page
from ray_recsys.storage.location import Location, LocationLike

_INTERVAL = 1.96  # standard errors on either side: 95 % of a normal distribution
_OTHERS = "#8a979d"
LINES = (COLOR, "#b4502d", "#5d8a3a", "#7a5c99", "#a6841f", _OTHERS)


def write_html(result: EvaluationResult, data: LocationLike, path: LocationLike) -> None:
    """Writes the page; an existing file is replaced once the new one is complete.

    Args:
        result: Of at least one model.
        data: The prepared set, as the page names it.
        path: The file.

    Raises:
        InputError: Matplotlib is not installed.
    """
    write_page(path, f"Evaluation on {Location.of(data).name}", lambda plot: _body(result, data, plot))


def _body(result: EvaluationResult, data: LocationLike, plot: Plot) -> list[str]:
    labels = list(dict.fromkeys(label for model in result.models.values() for label in model.metrics))
    figures = {
        "split": result.split,
        "protocol": result.protocol,
        "users": f"{result.num_users:,}",
        "held-out items": f"{result.num_held_out:,}",
        "candidates of a user": f"{result.candidates_per_list:,.0f}",
    }
    rows = [(label, *(_cell(model, label) for model in result.models.values())) for label in labels]
    return [
        header("Evaluation", f"{data} · {', '.join(result.models)}"),
        cards(figures),
        '<h2>Metrics</h2><div class="grid">',
        *_metric_figures(result.models, labels, plot),
        "</div><h2>All metrics, with 95 % intervals over users</h2>",
        table(("metric", *result.models), rows),
        *_buckets(result.models, labels, plot),
        *_two_stages(result.models, plot),
    ]


def _metric_figures(models: Mapping[str, ModelMetrics], labels: Sequence[str], plot: Plot) -> Iterable[str]:
    chosen = [label for label in ("NDCG@10", "Hit@10", "Recall@10", "RMSE") if label in labels] or labels[:1]
    for label in chosen:
        yield figure(label, "bars are 95 % intervals over users", plot(partial(_draw, models=models, label=label)))


def _draw(axes: Any, models: Mapping[str, ModelMetrics], label: str) -> None:
    """Draws a point and an interval for each model, the first on top."""
    shown = [(name, model) for name, model in models.items() if label in model.metrics][::-1]
    for height, (_, model) in enumerate(shown):
        axes.errorbar(
            model.metrics[label],
            height,
            xerr=_INTERVAL * model.standard_errors.get(label, 0.0),
            fmt="o",
            capsize=3,
            color=COLOR,
        )
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.set(xlabel=label, ylim=(-0.6, len(shown) - 0.4))


def _buckets(models: Mapping[str, ModelMetrics], labels: Sequence[str], plot: Plot) -> Iterable[str]:
    metric = next((label for label in ("NDCG@10", *labels) if label in labels), "")
    kinds: tuple[tuple[str, str, Mapping[str, Sequence[BucketMetrics]]], ...] = (
        ("users", "by the user's training interactions", {name: m.by_activity for name, m in models.items()}),
        (
            "held-out items",
            "by the item's training interactions",
            {name: m.by_popularity for name, m in models.items()},
        ),
    )
    kept = [(counted, remark, buckets) for counted, remark, buckets in kinds if any(buckets.values())]
    if not kept:
        return
    yield f'<h2>{metric} by training interactions</h2><div class="grid">'
    for _, remark, buckets in kept:
        yield figure(metric, remark, plot(partial(draw_buckets, buckets=buckets, metric=metric)))
    yield "</div>"
    for counted, _, buckets in kept:
        rows = [
            (same[0].training_interactions, f"{same[0].count:,}", *(_cell(bucket, metric) for bucket in same))
            for same in zip(*(found for found in buckets.values() if found), strict=True)
        ]
        yield table(("training interactions", counted, *(name for name, found in buckets.items() if found)), rows)


def draw_buckets(axes: Any, buckets: Mapping[str, Sequence[BucketMetrics]], metric: str) -> None:
    """Draws a metric by bucket with its 95 % interval, a line per name."""
    names: list[str] = []
    for number, (name, found) in enumerate(buckets.items()):
        values = [bucket.metrics.get(metric, float("nan")) for bucket in found]
        errors = [_INTERVAL * bucket.standard_errors.get(metric, 0.0) for bucket in found]
        color = LINES[number % len(LINES)]
        axes.errorbar(
            range(len(values)), values, yerr=errors, fmt="o-", markersize=3, capsize=2, color=color, label=name
        )
        names = names or [bucket.training_interactions for bucket in found]
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="training interactions", ylabel=metric)
    axes.legend(frameon=False, fontsize=8)


def _two_stages(models: Mapping[str, ModelMetrics], plot: Plot) -> Iterable[str]:
    for name, model in models.items():
        stages = model.two_stage
        if stages is None:
            continue
        rows = [
            (
                f"{point.num_candidates:,}",
                f"{point.candidate_recall:.4f}",
                f"{point.ndcg:.4f}",
                f"{point.share_of_full:.2%}",
                f"{point.gain:+.4f} ±{_INTERVAL * point.gain_standard_error:.4f}",
            )
            for point in stages.points
        ]
        yield f'<h2>Recall, then rerank</h2><div class="grid">{_two_stage_figure(name, stages, plot)}</div>'
        yield table(("candidates", "candidate recall", "NDCG@10", "share of full", "gain over recall alone"), rows)


def _two_stage_figure(name: str, stages: TwoStageResult, plot: Plot) -> str:
    enough = f"{stages.smallest_sufficient:,} candidates keep" if stages.smallest_sufficient else "none of these keeps"

    def draw(axes: Any) -> None:
        numbers = [point.num_candidates for point in stages.points]
        axes.plot(numbers, [point.ndcg for point in stages.points], "o-", markersize=3, color=COLOR, label="reranked")
        axes.axhline(stages.full_ndcg, linestyle="--", color=_OTHERS, linewidth=1, label="whole catalogue reranked")
        axes.axhline(stages.recall_ndcg, linestyle=":", color=_OTHERS, linewidth=1, label="recall alone")
        axes.set(xscale="log", xlabel="candidates", ylabel="NDCG@10")
        axes.legend(frameon=False, fontsize=8)

    return figure(name, f"{enough} 99 % of the whole catalogue's NDCG@10", plot(draw))


def _cell(model: ModelMetrics | BucketMetrics, label: str) -> str:
    if label not in model.metrics:
        return ""
    error = model.standard_errors.get(label)
    return f"{model.metrics[label]:.4f}" + ("" if error is None else f" ±{_INTERVAL * error:.4f}")
