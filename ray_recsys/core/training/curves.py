"""The curves of a run: a line per epoch as CSV, and a plot of loss and validation metrics as SVG."""

import csv
import math
from collections.abc import Sequence
from html import escape

from ray_recsys.core.training.trainer import EpochRecord
from ray_recsys.storage.files import written_file
from ray_recsys.storage.location import Location, LocationLike

_WIDTH, _HEIGHT = 360, 190  # of a panel, in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 28, 30
_INK, _LINE, _GRID = "#1d2a30", "#2f6f8f", "#d8dee2"


def write_curves(location: LocationLike, records: Sequence[EpochRecord]) -> None:
    """Writes one line per epoch, atomically."""
    names = _metric_names(records)
    with (
        written_file(Location.of(location), durable=False) as path,
        path.open("w", newline="", encoding="utf8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["epoch", "loss", *names, "samples_per_s", "train_s", "validate_s"])
        for record in records:
            metrics = [f"{record.metrics[name]:.6f}" if name in record.metrics else "" for name in names]
            times = [f"{record.samples_per_s:.0f}", f"{record.train_s:.3f}", f"{record.validate_s:.3f}"]
            writer.writerow([record.epoch, f"{record.loss:.6f}", *metrics, *times])


def write_plot(location: LocationLike, records: Sequence[EpochRecord]) -> None:
    """Writes a panel for the loss and for each validation metric over the epochs, two in a row, atomically."""
    panels = [("loss", [(record.epoch, record.loss) for record in records])]
    panels += [
        (name, [(record.epoch, record.metrics[name]) for record in records if name in record.metrics])
        for name in _metric_names(records)
    ]
    rows = math.ceil(len(panels) / 2)
    drawn = "".join(
        f'<g transform="translate({number % 2 * _WIDTH},{number // 2 * _HEIGHT})">{_panel(name, points)}</g>'
        for number, (name, points) in enumerate(panels)
    )
    size = f'viewBox="0 0 {2 * _WIDTH} {rows * _HEIGHT}" width="{2 * _WIDTH}" height="{rows * _HEIGHT}"'
    style = f'font-family="system-ui, sans-serif" font-size="11" fill="{_INK}"'
    with written_file(Location.of(location), durable=False) as path:
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" fill="#fff"/>'
            f"{drawn}</svg>\n",
            encoding="utf8",
        )


def _metric_names(records: Sequence[EpochRecord]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.metrics))


def _panel(name: str, points: Sequence[tuple[int, float]]) -> str:
    """Returns a line chart; its axes go from the lowest to the highest value."""
    points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
    title = f'<text x="{_LEFT}" y="18" font-weight="600">{escape(name)}</text>'
    if not points:
        return title
    (x_low, x_high), (y_low, y_high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    points_xy = [
        (
            _scale(epoch, x_low, x_high, _LEFT, _WIDTH - _RIGHT),
            _scale(value, y_low, y_high, _HEIGHT - _BOTTOM, _TOP),
        )
        for epoch, value in points
    ]
    grid = "".join(
        f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="{_GRID}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.4g}</text>'
        for value, y in ((y_low, _HEIGHT - _BOTTOM), (y_high, _TOP))
    )
    epochs = "".join(
        f'<text x="{x:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{epoch}</text>'
        for epoch, x in {x_low: points_xy[0][0], x_high: points_xy[-1][0]}.items()
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points_xy)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{_LINE}"/>' for x, y in points_xy)
    return f'{title}{grid}{epochs}<polyline points="{line}" fill="none" stroke="{_LINE}" stroke-width="1.6"/>{dots}'


def _scale(value: float, low: float, high: float, start: int, end: int) -> float:
    """Returns a value's coordinate between two pixels; their middle if all values are equal."""
    share = (value - low) / (high - low) if high > low else 0.5
    return start + share * (end - start)
