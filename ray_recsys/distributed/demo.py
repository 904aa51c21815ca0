"""The full pipeline on the demo's data, and a request to the running endpoint.

All results come from HTTP responses and from `evaluate`; printing is the caller's task.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import ItemKNNRecipe, Recipe, UserKNNRecipe
from ray_recsys.core.evaluation.result import EvaluationResult
from ray_recsys.core.executor import Executor
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.core.workflows.evaluate import evaluate
from ray_recsys.core.workflows.publish import publish
from ray_recsys.datasets.movielens_demo import write_movielens
from ray_recsys.distributed.environment import usable_port
from ray_recsys.distributed.serve.local import LOCAL_OPENER, serve
from ray_recsys.distributed.training import train
from ray_recsys.errors import DataError, StageError
from ray_recsys.progress import Reporter, silent

NUM_SHOWN = 10
COMPARED = (
    ItemKNNRecipe(num_neighbours=100, alpha=0.6, recency_half_life=3.0),
    UserKNNRecipe(
        num_neighbours=50,
        alpha=0.7,
        recency_half_life=5.0,
        recency_floor=0.05,
        neighbour_half_life=20.0,
        neighbour_floor=0.05,
    ),
)
"""Models in the final table besides the recipe's own and the baselines, with the tuned settings of MovieLens-100K."""
_NOBODY = "nobody-in-particular"  # an unknown user gets popular items
_Result = TypeVar("_Result")


class Movie(BaseModel):
    """A row of the demo's recommendations."""

    model_config = ConfigDict(frozen=True)

    item_id: int | str
    title: str
    score: float | None = None


class DemoResult(BaseModel):
    """The endpoint's response, and the results of the stages."""

    model_config = ConfigDict(frozen=True)

    user_id: int
    seen: tuple[Movie, ...]
    """What the user rated, latest first."""
    recommended: tuple[Movie, ...]
    popular: tuple[Movie, ...]
    """Recommendations of the Popularity baseline: the most popular unseen items."""
    bundle: str
    evaluation: EvaluationResult
    page: str
    api_docs: str
    stage_s: dict[str, float]


@contextmanager
def demo(
    directory: Path, recipe: Recipe, executor: Executor, *, user_id: int, report: Reporter = silent
) -> Iterator[DemoResult]:
    """Prepares, trains, evaluates, publishes and serves under `directory`; yields while the graph is up.

    A second demo in the same directory prepares again and adds a run and a bundle.

    Raises:
        InputError: The demo's data are not installed, the user is not among them, or the port is in use.
    """
    stages = _Stages(report)
    run, registry, data = _next_run(directory), directory / "registry", directory / "prepared"
    usable_port(recipe.serve.host, recipe.serve.port)
    files = write_movielens(directory / "raw")
    _check_user(user_id, files.interactions)
    log, side_file = [str(files.interactions)], str(files.items)
    # overwritten, since another version's recipe may have made an existing set
    stages.go("prepare", lambda: prepare(log, data, recipe, executor, items=side_file, overwrite=True, report=report))
    stages.go("train", lambda: train(data, run, recipe, executor, report=report))
    compared = stages.go("compare", lambda: _train_compared(data, run, recipe, executor, report))
    evaluation = stages.go(
        "evaluate",
        lambda: evaluate(
            [run, *compared], PreparedSet.open(data), recipe.evaluate, executor, seed=recipe.seed, report=report
        ),
    )
    stages.go("publish", lambda: publish(run, data, registry, recipe.bundle, executor, report=report))
    start_s = time.monotonic()
    report("serve: starting the graph")
    with serve(registry, recipe.serve, report=report) as address:
        stages.seconds["serve"] = round(time.monotonic() - start_s, 2)
        answer = _ask_for_recommendations(address, user_id)
        yield DemoResult(
            user_id=user_id,
            **answer,
            evaluation=evaluation,
            page=f"{address}/",
            api_docs=f"{address}/docs",
            stage_s=stages.seconds,
        )


def _train_compared(data: Path, run: Path, recipe: Recipe, executor: Executor, report: Reporter) -> list[Path]:
    """Trains the other models of the demo's table; returns their runs."""
    runs = []
    for model in COMPARED:
        runs.append(run.with_name(f"{run.name}-{model.name}"))
        train(data, runs[-1], recipe.model_copy(update={"model": model}), executor, report=report)
    return runs


class _Stages:
    def __init__(self, report: Reporter) -> None:
        self._report = report
        self.seconds: dict[str, float] = {}

    def go(self, name: str, stage: Callable[[], _Result]) -> _Result:
        self._report(f"{name} …")
        start_s = time.monotonic()
        result = stage()
        self.seconds[name] = round(time.monotonic() - start_s, 2)
        return result


def _check_user(user_id: int, interactions: Path) -> None:
    known = pq.read_table(interactions, columns=["user_id"])["user_id"].unique().to_pylist()
    if user_id not in known:
        raise DataError(f"user {user_id} is not in the demo's data; users are {min(known)} to {max(known)}")


def _next_run(directory: Path) -> Path:
    number = 1
    while (directory / f"run-{number}").exists():
        number += 1
    return directory / f"run-{number}"


def _ask_for_recommendations(address: str, user_id: int) -> dict[str, Any]:
    seen = _ask(f"{address}/v1/users/{user_id}/seen?limit=1000")["items"]
    body = {"user_id": user_id, "k": NUM_SHOWN}
    answer = _ask(f"{address}/v1/recommend", body)
    known = [item["item_id"] for item in seen]
    popular = _ask(f"{address}/v1/recommend", {"user_id": _NOBODY, "k": NUM_SHOWN, "exclude_items": known})
    return {
        "seen": tuple(_movie(item) for item in seen),
        "recommended": tuple(_movie(item) for item in answer["items"]),
        "popular": tuple(_movie(item) for item in popular["items"]),
        "bundle": answer["bundle"],
    }


def _movie(item: dict[str, Any]) -> Movie:
    return Movie(item_id=item["item_id"], title=item.get("title") or str(item["item_id"]), score=item.get("score"))


def _ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the JSON answer to a GET, or to a POST of `body`."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - our own address
    try:
        with LOCAL_OPENER.open(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        detail = error.read().decode(errors="replace")
        kind = DataError if error.code < 500 else StageError
        raise kind(f"{url} answered {error.code}: {detail}") from None
    except OSError as error:
        raise StageError(f"{url} did not answer: {error}") from error
    return answer
