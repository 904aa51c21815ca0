"""The check of a bundle before it goes live: arrays in range, finite numbers, and the answers that it gave when made.

A bundle may be useless although every byte is as it was written: an index over two items, a weight that is not a
number, a library that computes something else on this machine. So each bundle holds smoke queries with the answers of
the process that made it, and whoever is about to serve it asks them again; that also warms it up.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from ray_recsys.core.arrays import Int32s
from ray_recsys.core.models.neighbours import NONE
from ray_recsys.core.recommending.bundle import INDEX, Bundle
from ray_recsys.core.recommending.candidate_index import CandidateIndex
from ray_recsys.core.recommending.recommender import Query, Recommendations, Recommender
from ray_recsys.errors import BundleRefusedError, IntegrityError

SMOKE = "smoke.json"
NUM_USERS = 8
K = 10
NUM_CANDIDATES = 20  # few, so that a wrong recall shows in the answers of a small catalogue too
TOLERANCE = 1e-3  # of a score, relative and absolute: float32 sums in another order, on another processor
_ROWS = 1 << 16  # of an array in memory at once


@dataclass(frozen=True, slots=True)
class SmokeQuery:
    """A query and the answer that it must get."""

    user_idx: int | None
    history: tuple[int, ...]
    source: str
    item_idx: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def query(self) -> Query:
        """The query."""
        return Query(
            user_idx=self.user_idx, history=np.array(self.history, np.int32), k=K, num_candidates=NUM_CANDIDATES
        )


def write_smoke(bundle: Bundle) -> None:
    """Writes the smoke queries of a bundle in the making, after checking its arrays.

    Raises:
        BundleRefusedError: An array is out of range, or an answer not finite.
    """
    check_arrays(bundle)
    recommender = Recommender(bundle)
    smoke = []
    for query in _queries(bundle):
        answer = recommender.recommend(query)
        _check_plausible(bundle, answer)
        smoke.append(
            {
                "user_idx": query.user_idx,
                "history": query.history.tolist(),
                "source": answer.source,
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
                tuple(entry["item_idx"]),
                tuple(entry["scores"]),
            )
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error})", remedy="publish the bundle again") from error


def check_bundle(bundle: Bundle) -> Recommender:
    """Checks a bundle's arrays and answers; returns its recommender, warm.

    Raises:
        ArtifactError: It is damaged, or it was refused.
    """
    check_arrays(bundle)
    recommender = Recommender(bundle)
    check_answers(recommender, read_smoke(bundle))
    bundle.catalogue.warm()
    return recommender


def check_answers(recommender: Recommender, queries: Sequence[SmokeQuery]) -> None:
    """Asks smoke queries of the recommender's bundle.

    Raises:
        BundleRefusedError: An answer differs from the stored one by more than rounding.
    """
    bundle = recommender.bundle
    for number, smoke in enumerate(queries):
        answer = recommender.recommend(smoke.query)
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
    if (bundle.path / INDEX).is_file():
        index = CandidateIndex.open(bundle.path / INDEX)
        if index.num_items != num_items:
            raise BundleRefusedError(f"{bundle.path / INDEX} has {index.num_items} items, the catalogue {num_items}")
        for first in range(0, num_items, _ROWS):
            _check_finite(bundle, INDEX, index.vectors(first, min(_ROWS, num_items - first)))


def _queries(bundle: Bundle) -> Iterator[Query]:
    """Yields queries of known users, of a history alone, of a user with new events, and of nobody."""
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
    for path in sorted(bundle.path.glob("*model/**/*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                values = file.get_tensor(name)
                if np.issubdtype(values.dtype, np.floating):
                    yield f"{path.relative_to(bundle.path)}, {name}", values


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
