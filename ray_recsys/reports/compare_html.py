"""A comparison of recipes as one self-contained HTML page: tables, curves, quality by cost, recall, buckets."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from ray_recsys.core.evaluation.comparison import Comparison, RecipeResult
from ray_recsys.reports.comparison_tables import comparison_tables, facts
from ray_recsys.reports.evaluation_html import LINES, draw_buckets
from ray_recsys.reports.page import Plot, cards, figure, header, table, text, write_page
from ray_recsys.storage.location import Location, LocationLike

_STYLES = ("-", "--", ":")


def write_html(comparison: Comparison, path: LocationLike) -> None:
    """Writes the page; an existing file is replaced once the new one is complete.

    Raises:
        InputError: Matplotlib is not installed.
    """
    write_page(path, f"Comparison: {Location.of(path).parent.name}", lambda plot: _body(comparison, path, plot))


def _body(comparison: Comparison, path: LocationLike, plot: Plot) -> list[str]:
    best = comparison.recipes[0]
    value = best.metrics[comparison.main_metric]
    figures = {
        "best recipe": best.recipe,
        f"its {comparison.main_metric}": f"{value.value:.4f}",
        "interval": f"{value.low:.4f} to {value.high:.4f}",
        "users": f"{comparison.num_users:,}",
        "protocol": comparison.protocol,
    }
    quality, differences, *rest = (
        f"<h2>{text(part.title)}</h2>{table(part.header, part.rows)}" for part in comparison_tables(comparison)
    )
    return [
        header("Comparison of recipes", str(Location.of(path).parent)),
        cards(figures),
        f"<p>{text(facts(comparison))}</p>",
        quality,
        differences,
        '<h2>Plots</h2><div class="grid">',
        *_figures(comparison, plot),
        "</div>",
        *rest,
    ]


def _figures(comparison: Comparison, plot: Plot) -> Iterable[str]:
    recipes, metric = comparison.recipes, comparison.main_metric
    if any(result.curve for result in recipes):
        yield figure(
            "Learning curves",
            "validation under full ranking by seconds of epochs, first seed; models without epochs have none",
            plot(lambda axes: _draw_curves(axes, recipes)),
        )
    if any(result.cost.train_s is not None for result in recipes):
        yield figure(
            "Quality by training time",
            f"{metric} with its interval, by wall time of training",
            plot(lambda axes: _draw_costs(axes, recipes, metric)),
        )
    if any(result.two_stage for result in recipes):
        yield figure(
            "Recall",
            "share of held-out items among the candidates, by their number; first seed",
            plot(lambda axes: _draw_recall(axes, recipes)),
        )
    for name, of in (("by_activity", "user"), ("by_popularity", "held-out item")):
        buckets = {result.recipe: getattr(result, name) for result in recipes}
        if any(buckets.values()):
            yield figure(
                f"{metric} by training interactions of the {of}",
                "quartiles; bars are 95 % intervals over users; first seed",
                plot(partial(draw_buckets, buckets=buckets, metric=metric)),
            )


def _style(number: int) -> dict[str, Any]:
    return {"color": LINES[number % len(LINES)], "linestyle": _STYLES[number // len(LINES) % len(_STYLES)]}


def _legend(axes: Any) -> None:
    axes.legend(fontsize="x-small", frameon=False)


def _draw_curves(axes: Any, recipes: Sequence[RecipeResult]) -> None:
    for number, result in enumerate(recipes):
        if result.curve:
            seconds, values = zip(*((point.seconds, point.value) for point in result.curve), strict=True)
            axes.plot(seconds, values, marker=".", markersize=3, label=result.recipe, **_style(number))
    labels = dict.fromkeys(result.curve_label for result in recipes if result.curve)
    axes.set(xlabel="seconds", ylabel=", ".join(labels))
    _legend(axes)


def _draw_costs(axes: Any, recipes: Sequence[RecipeResult], metric: str) -> None:
    for number, result in enumerate(recipes):
        if result.cost.train_s is not None:
            interval = result.metrics[metric]
            below, above = interval.value - interval.low, interval.high - interval.value
            bar = [[max(0.0, below)], [max(0.0, above)]]
            color = _style(number)["color"]
            axes.errorbar([result.cost.train_s], [interval.value], yerr=bar, fmt="o", color=color, label=result.recipe)
    axes.set(xlabel="training, seconds", ylabel=metric, xscale="log")
    _legend(axes)


def _draw_recall(axes: Any, recipes: Sequence[RecipeResult]) -> None:
    for number, result in enumerate(recipes):
        if result.two_stage is not None:
            points = result.two_stage.points
            axes.plot(
                [point.num_candidates for point in points],
                [point.candidate_recall for point in points],
                marker=".",
                label=result.recipe,
                **_style(number),
            )
    axes.set(xlabel="candidates", ylabel="candidate recall", xscale="log")
    _legend(axes)
