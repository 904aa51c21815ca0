"""Request and response bodies, with examples for the OpenAPI description.

Upper limits come from the recipe and are checked in `resolve`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr

from ray_recsys.core.recommending.bundle import BundleManifest
from ray_recsys.core.recommending.recommender import Source


def _whole(value: object) -> object:
    """Returns 3 for 3.0: to JSON Schema both are integers."""
    return int(value) if type(value) is float and value.is_integer() else value


Whole = Annotated[int, Field(strict=True), BeforeValidator(_whole)]
ExternalId = Whole | StrictStr
UserId = Whole | Annotated[StrictStr, Field(min_length=1)]
ListName = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Count = Annotated[int, Field(ge=1, strict=True), BeforeValidator(_whole)]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RecommendRequest(_Schema):
    """Recommendation request. Unknown users without a history get popular items."""

    user_id: UserId | None = Field(default=None, examples=[42])
    """Known or unknown user; omitted for an anonymous one."""
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
    allowed_items: tuple[ExternalId, ...] | None = Field(default=None, examples=[None])
    """Only these items; unknown ones are ignored. k of them are returned, if that many are eligible."""
    category: StrictStr | None = Field(default=None, examples=["Comedy"])
    """Only items of this category, or with it among the parts that `|` separates."""
    list: ListName | None = Field(default=None, examples=[None])
    """Only items of this list, such as what is in stock; see PUT /v1/lists/{name}."""
    diversity: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    """Penalty for similarity to the items above (maximal marginal relevance); 0 keeps the order of the scores."""
    explain: StrictBool = False
    """Add to each item the seen items that it resembles most."""
    string_ids: StrictBool = False
    """Write all ids as strings, for clients that round integers above 2^53, such as JavaScript."""


class ListRequest(_Schema):
    """The items of a list; it replaces the one of the same name."""

    item_ids: tuple[ExternalId, ...] = Field(examples=[[50, 181]])
    """At most serve.max_list_items; items that a bundle does not contain are ignored when the list is used."""


class ListDescription(_Schema):
    """A list of items."""

    name: str = Field(examples=["in-stock"])
    num_items: int = Field(examples=[2])


class ListsResponse(_Schema):
    """The lists of the registry, by name."""

    lists: tuple[ListDescription, ...]


class BatchRequest(_Schema):
    """Recommendations to many known or unknown users at once."""

    user_ids: Annotated[tuple[UserId, ...], Field(min_length=1, max_length=256)] = Field(examples=[[1, 2, 3]])
    k: Count = Field(default=10, examples=[10])
    """Number of items for each."""
    exclude_seen: StrictBool = True
    """Exclude the items that each user has seen."""
    category: StrictStr | None = Field(default=None, examples=[None])
    """Only items of this category."""
    string_ids: StrictBool = False
    """Write all ids as strings."""


class ScoreRequest(_Schema):
    """Scores of given items for a user, from a history, or by popularity for anonymous users."""

    item_ids: Annotated[tuple[ExternalId, ...], Field(min_length=1)] = Field(examples=[[50, 181]])
    """At most serve.max_candidates; an unknown item gets no score."""
    user_id: UserId | None = Field(default=None, examples=[42])
    """Known or unknown user."""
    history: tuple[ExternalId, ...] = Field(default=(), examples=[[]])
    """Items the user has chosen, oldest first."""
    string_ids: StrictBool = False
    """Write all ids as strings."""


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
    source: Source
    """two-stage: a known user; fold-in: from a history; popular: neither."""
    bundle: str = Field(examples=["20261124T050102Z-1f0c9a3e"])
    """The bundle version behind the whole response."""
    arm: str = Field(default="A", examples=["A"])
    """The arm that the user is in; A is the live version."""
    num_unknown_history: int = Field(default=0, examples=[0])
    """Number of history items that the bundle does not contain."""
    timings_ms: Timings


class BatchEntry(_Schema):
    """Recommendations to one user of a batch."""

    user_id: int | str = Field(examples=[42])
    items: list[RecommendedItem]
    source: Source


class BatchResponse(_Schema):
    """Recommendations in the order of the request."""

    results: list[BatchEntry]
    bundle: str


class ItemScore(_Schema):
    """An item of the request and its score."""

    item_id: int | str = Field(examples=[50])
    score: float | None = Field(examples=[2.75])
    """null: the bundle does not contain the item."""


class ScoreResponse(_Schema):
    """Scores in the order of the request."""

    scores: list[ItemScore]
    source: Source
    bundle: str


class ItemResponse(_Schema):
    """One item of the catalogue."""

    item: Item
    num_users: int = Field(examples=[583])
    """Users of the training data who chose it."""
    bundle: str


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


class SwapProblem(_Schema):
    """Why the registry's live version is not served."""

    version: str | None = Field(examples=["20261124T050102Z-1f0c9a3e"])
    """The version that was refused; null if CURRENT cannot be read."""
    reason: str = Field(examples=["IntegrityError: recall_vectors.npy: the sha256 differs"])


class ArmDescription(_Schema):
    """A version that serves a share of the users alongside the live one."""

    name: str = Field(examples=["B"])
    version: str = Field(examples=["20261124T050102Z-1f0c9a3e"])
    percent: float = Field(examples=[10.0])
    """Part of the users."""
    shadow: bool
    """These users get the live version's answers; this version's are only measured."""


class BundleResponse(BundleManifest):
    """The live bundle."""

    model_label: str = Field(examples=["Item-based CF"])
    """The name of `model` for display."""
    recall_model_label: str = Field(examples=["Item-based CF"])
    """The name of `recall_model` for display."""
    swap_failure: SwapProblem | None = None
    """Why the registry's live version is not served; null: it is."""
    arms: tuple[ArmDescription, ...] = ()
    """Versions that serve alongside the live one."""
    arm_failure: str | None = None
    """Why the registry's arms are not all served; null: they are."""
    categories: tuple[str, ...] = ()
    """The categories with the most items, at most 100, by name."""
    recipe: dict[str, Any]  # type: ignore[assignment]  # a typed recipe would add 20 schemas to /docs
    """Full recipe of the training run."""


class Health(_Schema):
    """The process is up."""

    status: Literal["ok"] = "ok"
    bundle: str
    """The serving version."""


class Ready(_Schema):
    """The stages answer. `degraded`: an older version serves, because the registry's live one was refused."""

    status: Literal["ready", "degraded"]
    bundle: str
    """The serving version."""
    swap_failure: SwapProblem | None = None


class ProblemBody(_Schema):
    """RFC 9457 problem details, sent as application/problem+json."""

    type: str = Field(examples=["urn:ray-recsys:problem:invalid-value"])
    title: str = Field(examples=["Invalid value"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["k = 100000: the maximum is 100"])
    field: str | None = Field(default=None, examples=["k"])
    value: Any = Field(default=None, examples=[100000])
    limit: str | int | None = Field(default=None, examples=[100])
