"""Request and response bodies, with examples for the OpenAPI description.

Upper limits come from the recipe and are checked in `resolve`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from ray_recsys.core.recommending.bundle import BundleManifest

ExternalId = StrictInt | StrictStr
Count = Annotated[int, Field(ge=1, strict=True)]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RecommendRequest(_Schema):
    """Recommendation request. Unknown users without a history get popular items."""

    user_id: ExternalId | None = Field(default=None, examples=[42])
    """Known or unknown user."""
    history: tuple[ExternalId, ...] = Field(default=(), examples=[[]])
    """Items the user has chosen, oldest first, instead of or in addition to those in the bundle. Unknown items are
    ignored and counted in the response."""
    k: Count = Field(default=10, examples=[10])
    """Number of items to recommend."""
    exclude_seen: StrictBool = True
    """Exclude the history and the items the user has seen."""
    exclude_items: tuple[ExternalId, ...] = Field(default=(), examples=[[]])
    """Items to exclude; unknown ones are ignored."""
    num_candidates: Count | None = Field(default=None, examples=[200])
    """Number of candidates that recall passes to rerank, raised to k if smaller; the recipe has the default."""
    explain: StrictBool = False
    """Add to each item the seen items that it resembles most."""
    string_ids: StrictBool = False
    """Write all ids as strings, for clients that round integers above 2^53, such as JavaScript."""


class Item(_Schema):
    """An item of the catalogue."""

    item_id: int | str = Field(examples=[50])
    title: str | None = Field(default=None, examples=["Star Wars (1977)"])
    category: str | None = Field(default=None, examples=["Action|Adventure"])


class ScoredItem(Item):
    """An item with its score: the model's score, a similarity, or for popular items the number of users."""

    score: float = Field(examples=[2.75])


class RecommendedItem(ScoredItem):
    """A recommended item."""

    because: list[Item] | None = None
    """With `explain`: up to 3 items of the user that are most similar to this one, most similar first."""


class SeenItem(Item):
    """An item that a user has seen."""

    rating: float | None = Field(default=None, examples=[4.5])
    """The user's rating, if the bundle was built from ratings."""


class Timings(_Schema):
    """Milliseconds of computation per stage, and of the whole request."""

    recall: float = Field(examples=[0.21])
    rerank: float = Field(examples=[0.35])
    total: float = Field(examples=[2.1])


class RecommendResponse(_Schema):
    """Recommendations, best first."""

    items: list[RecommendedItem]
    source: Literal["two-stage", "fold-in", "popular"]
    """two-stage: a known user; fold-in: from a history; popular: neither."""
    bundle: str = Field(examples=["20261124T050102Z-1f0c9a3e"])
    """The bundle version behind the whole response."""
    num_unknown_history: int = Field(default=0, examples=[0])
    """Number of history items that the bundle does not contain."""
    timings_ms: Timings


class SimilarResponse(_Schema):
    """Similar items, most similar first; the score is the similarity."""

    item: Item
    items: list[ScoredItem]
    bundle: str


class UsersResponse(_Schema):
    """Users of the bundle."""

    users: list[int | str]


class ItemsResponse(_Schema):
    """Items of the catalogue, most popular first."""

    items: list[Item]


class SeenResponse(_Schema):
    """Items that a user has seen, latest first."""

    items: list[SeenItem]


class BundleResponse(BundleManifest):
    """The live bundle."""

    model_label: str = Field(examples=["Item-based CF"])
    """The name of `model` for display."""
    recall_model_label: str = Field(examples=["Item-based CF"])
    """The name of `recall_model` for display."""
    recipe: dict[str, Any]  # type: ignore[assignment]  # a typed recipe would add 20 schemas to /docs
    """Full recipe of the training run."""


class Health(_Schema):
    """The service is up."""

    status: Literal["ok"] = "ok"
    bundle: str
    """The live version."""


class ProblemBody(_Schema):
    """RFC 9457 problem details, sent as application/problem+json."""

    type: str = Field(examples=["urn:ray-recsys:problem:invalid-value"])
    title: str = Field(examples=["Invalid value"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["k = 100000: the maximum is 100"])
    field: str | None = Field(default=None, examples=["k"])
    value: Any = Field(default=None, examples=[100000])
    limit: str | int | None = Field(default=None, examples=[100])
