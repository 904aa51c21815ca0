"""Recipe sections on data: how the log and the side file of items are read, what is kept, what is held out."""

import codecs
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ray_recsys.config.section import Fraction, Section


class DropRule(Section):
    """A row of the log is dropped when its column meets every condition given; null meets `is_null` alone."""

    reason: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name under which the dropped rows are counted."""
    column: str
    """Column of the log, as named in the file."""
    matches: str | None = None
    """Regular expression (RE2) that the text of the value contains."""
    not_matches: str | None = None
    """Regular expression (RE2) that the text of the value does not contain."""
    at_most: float | None = None
    """Numeric value is at most this."""
    at_least: float | None = None
    """Numeric value is at least this."""
    is_null: bool = False
    """Value is missing."""

    @model_validator(mode="after")
    def _has_condition(self) -> Self:
        if not self.is_null and all(c is None for c in (self.matches, self.not_matches, self.at_most, self.at_least)):
            raise ValueError("a drop rule needs one of matches, not_matches, at_most, at_least, is_null")
        return self


class FileFormat(Section):
    """Format of a file of rows."""

    format: Literal["auto", "parquet", "csv", "tsv", "movielens", "jsonl", "user_lines"] = "auto"
    """`auto` goes by the ending (.parquet .csv .tsv .data .dat .jsonl .ndjson); `movielens` is `::`-separated;
    `user_lines`, for logs alone, has a line per user, `user item item ...`, no header and no times."""
    separator: str | None = Field(default=None, min_length=1, max_length=2)
    """Field separator of a text file; by default that of the format (of user_lines: any blanks)."""
    column_names: tuple[str, ...] = ()
    """Names for the columns of a text file without a header line; empty: the first line is the header."""
    encoding: str = "utf8"
    """Text encoding, e.g. latin-1."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"encoding = {self.encoding!r} is not known; give one of Python's, e.g. utf8") from None
        if self.separator is not None and not self.separator.isascii():
            raise ValueError(f"separator = {self.separator!r} is not ASCII")
        return self


class InputRecipe(FileFormat):
    """Format and columns of the interaction log."""

    user_column: str = "user_id"
    item_column: str = "item_id"
    timestamp_column: str | None = "timestamp"
    """None: the log has no times; only the random split is possible then."""
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns"] = "auto"
    """Unit of integer times; `auto`: s below 1e11, else ms."""
    rating_column: str | None = None
    """Explicit ratings; None: every interaction counts as 1."""
    drop: tuple[DropRule, ...] = ()
    """Rules tried in order, before deduplication; the first that meets a row names its reason."""

    @model_validator(mode="before")
    @classmethod
    def _without_times(cls, data: Any) -> Any:
        """Sets the columns that lines of users imply: they have no times."""
        if isinstance(data, Mapping) and data.get("format") == "user_lines":
            return {"timestamp_column": None, **data}
        return data

    @model_validator(mode="after")
    def _has_columns(self) -> Self:
        if self.format == "user_lines":
            for key in ("timestamp_column", "rating_column"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} = {getattr(self, key)!r}: format = 'user_lines' has users and items alone")
            if self.column_names:
                raise ValueError("column_names: format = 'user_lines' has no columns to name")
        return self


class ItemsRecipe(FileFormat):
    """Format and columns of the side file of items; its columns are copied to the bundle."""

    id_column: str = "item_id"
    title_column: str | None = "title"
    category_column: str | None = None

    @model_validator(mode="after")
    def _has_columns(self) -> Self:
        if self.format == "user_lines":
            raise ValueError("format = 'user_lines': a side file of items has columns")
        return self


class PrepareRecipe(Section):
    """Deduplication and filters of interactions."""

    deduplicate: Literal["first", "last", "highest_rating", "count"] = "last"
    """Interaction kept of a repeated (user, item) pair; `count`: the last, with their number as its repetition."""
    min_rating: float | None = None
    """Interactions rated lower are dropped, after deduplication."""
    max_interactions_per_user: PositiveInt = 1_000_000
    """A user with more rows in the log, repetitions included, counts as a robot: all its rows are dropped."""
    min_interactions_per_user: PositiveInt = 1
    min_interactions_per_item: PositiveInt = 1
    filter: Literal["once", "k_core"] = "once"
    """`once`: items, then users, one pass each; `k_core`: until nothing changes."""
    num_partitions: PositiveInt | None = None
    """Partitions of users; None: from the number of rows alone, so that it is the same on every cluster."""


class SplitRecipe(Section):
    """Split into training, validation and test interactions."""

    method: Literal["leave_one_out", "global_time", "random_per_user", "given"] = "leave_one_out"
    """`leave_one_out`: a user's last is the test, the one before the validation (ties in time: by item id); `given`:
    the test is in separate files (`prepare --test`), the validation is drawn from each user's other interactions."""
    validation_fraction: Fraction = 0.1
    """Share of interactions held out for validation (not for leave_one_out)."""
    test_fraction: Fraction = 0.1
    """Share of interactions held out as test (not for leave_one_out and given)."""
    validation_from_s: int | None = None
    """global_time: first second of the validation period; None: by validation_fraction."""
    test_from_s: int | None = None
    """global_time: first second of the test period; None: by test_fraction."""

    @model_validator(mode="after")
    def _leaves_training(self) -> Self:
        begins, ends = self.validation_from_s, self.test_from_s
        if begins is not None and ends is not None and begins > ends:
            raise ValueError(
                f"validation_from_s = {begins} is after test_from_s = {ends}; validation comes before the test"
            )
        if (held_out := self.validation_fraction + self.test_fraction) >= 1:
            raise ValueError(
                f"validation_fraction + test_fraction = {held_out:g} leaves nothing to train on; keep it < 1"
            )
        return self
