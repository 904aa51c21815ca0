"""A comparison of recipes as tables of text: for the terminal, for Markdown and for the HTML page."""

from collections.abc import Sequence
from typing import NamedTuple

from ray_recsys.core.evaluation.bootstrap import CONFIDENCE, Interval
from ray_recsys.core.evaluation.comparison import Comparison, RecipeResult


class TextTable(NamedTuple):
    """Rows of text with a header and a caption."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str


def comparison_tables(comparison: Comparison) -> list[TextTable]:
    """Returns quality, pairwise differences, cost, other metrics and both stages."""
    return [
        _quality(comparison),
        _differences(comparison),
        _cost(comparison),
        *_others(comparison),
        *_two_stages(comparison),
    ]


def facts(comparison: Comparison) -> str:
    """Returns a paragraph that describes the comparison."""
    users = f"{comparison.num_users:,} users"
    if comparison.num_users < comparison.num_eligible_users:
        users += f" of {comparison.num_eligible_users:,}"
    terms = comparison.terms
    budget = "no time limit" if terms.max_seconds is None else f"at most {terms.max_seconds:g} s of epochs each"
    num_seeds = max(len(result.seeds) for result in comparison.recipes)
    return (
        f"{comparison.protocol} ranking of {terms.split}, {users}; seeds: {num_seeds}, {budget}, never refit. "
        f"Brackets: {CONFIDENCE:.0%} percentile interval of the paired bootstrap over users ({terms.num_resamples:,} "
        f"resamples, a user's value is the mean over the seeds); ±: standard deviation over the seeds."
    )


def markdown(comparison: Comparison) -> str:
    """Returns the comparison as a Markdown document."""
    parts = ["# Comparison of recipes", "", f"`{comparison.data}`: {facts(comparison)}", ""]
    for table in comparison_tables(comparison):
        lines = [table.header, ("---",) * len(table.header), *table.rows]
        parts += [f"## {table.title}", "", *("| " + " | ".join(map(_escape, line)) + " |" for line in lines), ""]
    return "\n".join(parts)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")


def _quality(comparison: Comparison) -> TextTable:
    names = list(comparison.recipes[0].metrics)
    shown = [name for name in names if name == "MRR" or name.endswith(comparison.main_metric.removeprefix("NDCG"))]
    rows = [
        (
            result.recipe,
            *(_interval(result.metrics[name]) + _deviation(result.deviations[name], result.seeds) for name in shown),
        )
        for result in comparison.recipes
    ]
    rows += [(label, *(_interval(metrics[name]) for name in shown)) for label, metrics in comparison.baselines.items()]
    return TextTable(("recipe", *shown), rows, "Quality, best first")


def _differences(comparison: Comparison) -> TextTable:
    names = (comparison.main_metric.replace("NDCG", "Hit"), comparison.main_metric, "MRR")
    rows = [
        (
            f"{difference.recipe} − {difference.other}",
            *(_interval(difference.metrics[name], sign="+") for name in names),
            "yes" if difference.metrics[comparison.main_metric].is_apart_from_zero else "no",
        )
        for difference in comparison.differences
    ]
    header = ("pair", *names, f"{comparison.main_metric} apart from 0")
    return TextTable(header, rows, "Differences on the same users")


def _cost(comparison: Comparison) -> TextTable:
    rows = []
    for result in comparison.recipes:
        cost = result.cost
        rows.append(
            (
                result.recipe,
                result.model,
                "interrupted" if cost.train_s is None else f"{cost.train_s:.1f}",
                f"{cost.model_mb:.1f}",
                f"{cost.request_ms:.2f}",
                "no" if cost.fold_in_ms is None else f"{cost.fold_in_ms:.2f}",
            )
        )
    header = ("recipe", "model", "training, s", "model, MB", "request, ms", "fold-in, ms")
    return TextTable(header, rows, "Cost: a request is recall of 200 and rerank, in process on one thread")


def _others(comparison: Comparison) -> list[TextTable]:
    names = list(dict.fromkeys(name for result in comparison.recipes for name in result.others))
    rows = [
        (result.recipe, *(f"{result.others[name]:.4f}" if name in result.others else "" for name in names))
        for result in comparison.recipes
    ]
    return [TextTable(("recipe", *names), rows, "Errors of ratings, and beyond-accuracy metrics")] if names else []


def _two_stages(comparison: Comparison) -> list[TextTable]:
    def row(result: RecipeResult) -> tuple[str, ...]:
        assert result.two_stage is not None
        stages = result.two_stage
        return (
            result.recipe,
            f"{stages.full_ndcg:.4f}",
            f"{stages.recall_ndcg:.4f}",
            *(f"{point.candidate_recall:.3f} / {point.share_of_full:.1%}" for point in stages.points),
        )

    there = [result for result in comparison.recipes if result.two_stage is not None]
    if not there or there[0].two_stage is None:
        return []
    columns = tuple(f"{point.num_candidates:,}" for point in there[0].two_stage.points)
    title = "Two stages: candidate recall / share of the whole catalogue's NDCG@10, by number of candidates"
    return [TextTable(("recipe", "NDCG@10", "recall alone", *columns), [row(result) for result in there], title)]


def _deviation(value: float, seeds: Sequence[int]) -> str:
    return f" ±{value:.4f}" if len(seeds) > 1 else ""


def _interval(interval: Interval, *, sign: str = "") -> str:
    value, low, high = (format(number, f"{sign}.4f") for number in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"
