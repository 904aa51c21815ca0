"""A comparison of recipes as one self-contained HTML page: tables, curves, quality by cost, recall, buckets."""

from collections.abc import Iterable, Sequence
from typing import Any

from ray_recsys.core.evaluation.comparison import Comparison, RecipeResult
from ray_recsys.reports.comparison_tables import comparison_tables, facts
from ray_recsys.reports.page import Plot, cards, figure, header, table, text, write_page
from ray_recsys.storage.location import Location, LocationLike

_COLORS = ("#2f6f8f", "#c8553d", "#5a8f3c", "#8a5aa8", "#b8860b", "#3b4a54", "#d17ba8", "#1f9e89")
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
        if getattr(recipes[0], name):
            yield figure(
                f"{metric} by training interactions of the {of}",
                "quartiles; the bar is one standard error; first seed",
                plot(lambda axes, name=name: _draw_buckets(axes, recipes, name, metric)),  # type: ignore[misc]
            )


def _style(number: int) -> dict[str, Any]:
    return {"color": _COLORS[number % len(_COLORS)], "linestyle": _STYLES[number // len(_COLORS) % len(_STYLES)]}


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


def _draw_buckets(axes: Any, recipes: Sequence[RecipeResult], name: str, metric: str) -> None:
    labels = [bucket.training_interactions for bucket in getattr(recipes[0], name)]
    width = 0.8 / len(recipes)
    for number, result in enumerate(recipes):
        buckets = getattr(result, name)
        axes.bar(
            [place + (number + 0.5) * width - 0.4 for place in range(len(buckets))],
            [bucket.metrics[metric] for bucket in buckets],
            width,
            yerr=[bucket.standard_errors[metric] for bucket in buckets],
            color=_style(number)["color"],
            error_kw={"linewidth": 0.8},
            label=result.recipe,
        )
    axes.set_xticks(range(len(labels)), labels, fontsize="small")
    axes.set(xlabel="training interactions", ylabel=metric)
    _legend(axes)
