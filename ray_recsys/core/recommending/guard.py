"""Checks of a bundle before it goes live: arrays in range, finite numbers, and the answers recorded at its build.

A bundle may be unusable although its checksums match: an index over two items, a NaN weight, a library that computes
something else on this machine. So each bundle holds smoke queries with the answers of the process that made it, and
they are asked again once on every node that is about to serve it. Each process also asks them of the stages that it
runs, which warms them up.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Int32s
from ray_recsys.core.models.files import read_model_arrays
from ray_recsys.core.models.neighbours import NONE
from ray_recsys.core.recommending.bundle import MODEL, RECALL_MODEL, Bundle
from ray_recsys.core.recommending.candidate_index import VECTORS, CandidateIndex
from ray_recsys.core.recommending.checked_once import check_once
from ray_recsys.core.recommending.recommender import (
    Candidates,
    Query,
    Recaller,
    Recommendations,
    Recommender,
    Reranker,
)
from ray_recsys.errors import BundleRefusedError, IntegrityError

SMOKE = "smoke.json"
NUM_USERS = 8
K = 10
NUM_CANDIDATES = 20  # few, so that a wrong recall shows in the answers of a small catalogue too
TOLERANCE = 1e-3  # of a score, relative and absolute: float32 sums in another order, on another processor
MIN_SAME = 0.9  # part of the candidates: those at the edge may be tied, or in a list that rounding puts second
_ROWS = 1 << 16  # of an array in memory at once

Stage = Recaller | Reranker | Recommender


@dataclass(frozen=True, slots=True)
class SmokeQuery:
    """A query, its candidates, and the answer that it must get."""

    user_idx: int | None
    history: tuple[int, ...]
    source: str
    candidates: tuple[int, ...]
    item_idx: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def query(self) -> Query:
        """The query."""
        return Query(
            user_idx=self.user_idx, history=np.array(self.history, np.int32), k=K, num_candidates=NUM_CANDIDATES
        )


def write_smoke(bundle: Bundle) -> None:
    """Writes the smoke queries of an unfinished bundle, after checking its arrays.

    Raises:
        BundleRefusedError: An array is out of range, or an answer not finite.
    """
    check_arrays(bundle)
    recommender = Recommender(bundle)
    smoke = []
    for query in _queries(bundle):
        candidates = recommender.recall(query)
        answer = recommender.rerank(query, candidates)
        _check_plausible(bundle, answer)
        smoke.append(
            {
                "user_idx": query.user_idx,
                "history": query.history.tolist(),
                "source": answer.source,
                "candidates": candidates.item_idx.tolist(),
                "item_idx": answer.item_idx.tolist(),
                "scores": answer.scores.tolist(),
            }
        )
    (bundle.path / SMOKE).write_text(json.dumps(smoke, allow_nan=False) + "\n", encoding="utf8")


def read_smoke(bundle: Bundle) -> list[SmokeQuery]:
    """Returns the smoke queries of a bundle.

    Raises:
        IntegrityError: They cannot be read.
    """
    path = bundle.path / SMOKE
    try:
        entries = json.loads(path.read_text(encoding="utf8"))
        return [
            SmokeQuery(
                entry["user_idx"],
                tuple(entry["history"]),
                entry["source"],
                tuple(entry["candidates"]),
                tuple(entry["item_idx"]),
                tuple(entry["scores"]),
            )
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error})", remedy="publish the bundle again") from error


def check_bundle(bundle: Bundle) -> None:
    """Checks a bundle's arrays and answers, once a node.

    Raises:
        ArtifactError: It is damaged, or it was refused.
    """

    def check() -> None:
        check_arrays(bundle)
        check_answers(Recommender(bundle), read_smoke(bundle))

    check_once("answers", bundle.path, check)


def check_answers(stage: Stage, queries: Sequence[SmokeQuery]) -> None:
    """Asks smoke queries of both stages, or of the one that this process has; that also warms it up.

    Raises:
        BundleRefusedError: An answer differs from the stored one by more than rounding.
    """
    for number, smoke in enumerate(queries):
        if isinstance(stage, Recaller):
            _check_candidates(stage, number, smoke)
        else:
            _check_answer(stage, number, smoke)


def _check_candidates(recaller: Recaller, number: int, smoke: SmokeQuery) -> None:
    found = recaller.recall(smoke.query)
    expected = np.array(smoke.candidates, np.int32)
    is_same = len(found.item_idx) == len(expected) and (
        not len(expected) or np.isin(expected, found.item_idx).mean() >= MIN_SAME
    )
    if found.source != smoke.source or not is_same:
        raise BundleRefusedError(
            f"{recaller.bundle.path}: smoke query {number} (user {smoke.user_idx}) got {found.source} candidates "
            f"{found.item_idx.tolist()}, and {smoke.source} {list(smoke.candidates)} when the bundle was made"
        )


def _check_answer(stage: Recommender | Reranker, number: int, smoke: SmokeQuery) -> None:
    bundle = stage.bundle
    if isinstance(stage, Recommender):
        answer = stage.recommend(smoke.query)
    else:
        user, source = stage.factors(smoke.query)
        answer = stage.rerank(smoke.query, Candidates(np.array(smoke.candidates, np.int32), source, user))
    _check_plausible(bundle, answer)
    if answer.source != smoke.source or not _is_same(smoke, answer):
        raise BundleRefusedError(
            f"{bundle.path}: smoke query {number} (user {smoke.user_idx}) got {answer.source} items "
            f"{answer.item_idx.tolist()}, and {smoke.source} items {list(smoke.item_idx)} when the bundle was made"
        )


def check_arrays(bundle: Bundle) -> None:
    """Checks shapes, ranges and finiteness of everything that answers are made from.

    Raises:
        BundleRefusedError: Names the file and the value.
    """
    num_items = len(bundle.catalogue)
    _check_indices(bundle, "neighbours", bundle.neighbours.item_idx, NONE, num_items)
    _check_indices(bundle, "seen items", bundle.seen.items, 0, num_items)
    offsets = bundle.seen.offsets
    if offsets[0] != 0 or np.any(np.diff(offsets) < 0):
        raise BundleRefusedError(f"{bundle.path}: the offsets of the seen items do not ascend from 0")
    if np.any(np.diff(bundle.catalogue.counts) > 0):
        raise BundleRefusedError(f"{bundle.path}: the items are not in order of popularity")
    for name, values in _float_arrays(bundle):
        _check_finite(bundle, name, values)
    if (bundle.path / VECTORS).is_file():
        vectors = CandidateIndex.open(bundle.path).vectors
        if len(vectors) != num_items:
            raise BundleRefusedError(f"{bundle.path / VECTORS} has {len(vectors)} items, the catalogue {num_items}")
        _check_finite(bundle, VECTORS, vectors)


def _queries(bundle: Bundle) -> Iterator[Query]:
    """Yields queries of known users, of a history alone, of a user with new events, and without a user."""
    ask = partial(Query, k=K, num_candidates=NUM_CANDIDATES)
    users = np.unique(np.linspace(0, bundle.seen.num_users - 1, NUM_USERS).astype(np.int64)).tolist()
    for user_idx in users:
        yield ask(user_idx=user_idx)
    longest = max(users, key=lambda user_idx: len(bundle.seen.of(user_idx)))
    history: Int32s = bundle.seen.of(longest)[-5:]
    if history.size:
        yield ask(history=history)
        yield ask(user_idx=users[0], history=history)
    yield ask()


def _check_plausible(bundle: Bundle, answer: Recommendations) -> None:
    items = answer.item_idx
    if items.size and (items.min() < 0 or items.max() >= len(bundle.catalogue)):
        raise BundleRefusedError(f"{bundle.path}: an answer has items {items.tolist()} of {len(bundle.catalogue)}")
    if not np.isfinite(answer.scores).all():
        raise BundleRefusedError(f"{bundle.path}: an answer has scores {answer.scores.tolist()}")


def _is_same(smoke: SmokeQuery, answer: Recommendations) -> bool:
    """Returns whether scores are the same, and items too but for those whose scores are tied up to the tolerance."""
    expected = np.array(smoke.scores, np.float64)
    if len(expected) != len(answer.scores) or not np.allclose(answer.scores, expected, rtol=TOLERANCE, atol=TOLERANCE):
        return False
    is_other = answer.item_idx != np.array(smoke.item_idx, answer.item_idx.dtype)
    if not is_other.any():
        return True
    gaps = np.abs(np.diff(expected)) <= TOLERANCE * (1 + np.abs(expected[1:]))
    is_tied = np.concatenate([gaps, [True]]) | np.concatenate([[False], gaps])  # the last may be tied with the next
    return bool(is_tied[is_other].all())


def _float_arrays(bundle: Bundle) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yields the floating-point arrays of the models' files, and the similarities."""
    yield "neighbour scores", bundle.neighbours.scores
    for model in (MODEL, RECALL_MODEL):
        if (bundle.path / model).is_dir():
            for name, values in read_model_arrays(bundle.path / model).items():
                if np.issubdtype(values.dtype, np.floating):
                    yield f"{model}, {name}", values


def _check_finite(bundle: Bundle, name: str, values: npt.NDArray[Any]) -> None:
    for first in range(0, len(values) if values.ndim else 0, _ROWS):
        is_finite = np.isfinite(values[first : first + _ROWS])
        if not is_finite.all():
            row = first + int(np.argmin(is_finite.reshape(len(is_finite), -1).all(axis=1)))
            raise BundleRefusedError(f"{bundle.path}: {name}: row {row} has a value that is not finite")


def _check_indices(bundle: Bundle, name: str, indices: npt.NDArray[Any], lowest: int, stop: int) -> None:
    if indices.size and (int(indices.min()) < lowest or int(indices.max()) >= stop):
        raise BundleRefusedError(
            f"{bundle.path}: {name} have indices {int(indices.min())}..{int(indices.max())}, of {stop} items"
        )
