"""What goes over HTTP: bodies of requests and answers, with examples for the API's description.

Upper limits are the recipe's and are checked in `requests`; this module does not know them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

ExternalId = StrictInt | StrictStr
Count = Annotated[int, Field(ge=1, strict=True)]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RecommendRequest(_Schema):
    """Who asks, and for what; who is unknown and has no history gets popular items."""

    user_id: ExternalId | None = Field(default=None, examples=[42])
    """A user of the bundle, or any other."""
    history: tuple[ExternalId, ...] = Field(default=(), examples=[[]])
    """Items that the user liked, oldest first, in place of the user or beside them; unknown items are left out and
    counted in the answer."""
    k: Count = Field(default=10, examples=[10])
    """How many items to recommend."""
    exclude_seen: StrictBool = True
    """Keep out what the user has seen, and the history."""
    exclude_items: tuple[ExternalId, ...] = Field(default=(), examples=[[]])
    """Items to keep out; unknown ones change nothing."""
    num_candidates: Count | None = Field(default=None, examples=[200])
    """Items that recall hands to rerank, at least k; by default the recipe's."""


class Item(_Schema):
    """An item of the catalogue."""

    item_id: int | str = Field(examples=[50])
    title: str | None = Field(default=None, examples=["Star Wars (1977)"])
    category: str | None = Field(default=None, examples=["Action|Adventure"])


class ScoredItem(Item):
    """An item with its score: a logit, a cosine, or for popular items the number of users who have it."""

    score: float = Field(examples=[2.75])


class Timings(_Schema):
    """Milliseconds: of each stage's computation, and of the whole answer."""

    recall: float = Field(examples=[0.21])
    rerank: float = Field(examples=[0.35])
    total: float = Field(examples=[2.1])


class RecommendResponse(_Schema):
    """Best items first."""

    items: list[ScoredItem]
    source: Literal["two-stage", "fold-in", "popular"]
    """How the items were found: for a known user, from a history, or for nobody in particular."""
    bundle: str = Field(examples=["20261124T050102Z-1f0c9a3e"])
    """The version that every part of this answer was made by."""
    num_unknown_history: int = Field(default=0, examples=[0])
    """Items of the history that the bundle does not know."""
    timings_ms: Timings


class SimilarResponse(_Schema):
    """Most similar items first; the score is the cosine of the items' embeddings."""

    item: Item
    items: list[ScoredItem]
    bundle: str


class UsersResponse(_Schema):
    """Some users of the bundle."""

    users: list[int | str]


class ItemsResponse(_Schema):
    """Items, in the order that the path promises."""

    items: list[Item]


class Health(_Schema):
    """That the graph answers, and by which version."""

    status: Literal["ok"] = "ok"
    bundle: str


class ProblemBody(_Schema):
    """RFC 9457: what is wrong with a request, as application/problem+json."""

    type: str = Field(examples=["urn:ray-recsys:problem:invalid-value"])
    title: str = Field(examples=["A value is not allowed"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["k = 100000: at most 100 are allowed"])
    field: str | None = Field(default=None, examples=["k"])
    value: Any = Field(default=None, examples=[100000])
    limit: str | int | None = Field(default=None, examples=[100])
