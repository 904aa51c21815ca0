"""The evaluated users, and the candidates among which their held-out items are ranked.

Both are functions of indices and the seed alone: a sample of users and the items drawn for the sampled protocol are the
same in every process and for every model.

Shapes: B users, R held-out items or lists, I items, N items drawn for a list.

Source: distinct draws: Floyd, in Bentley, Floyd: Programming pearls: a sample of brilliance, CACM 30(9), 1987.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.arrays import Bools, Float32s, Int64s, positions_of_rows
from ray_recsys.core.counter_random import derive_key, derive_keys, random_bits, scale_to_each
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.sampling.excluded import ExcludedItems

Split = Literal["validation", "test"]

_CHOICE, _DRAWS = 5, 12  # separate the choice of users and the draws of items from other random numbers of a seed
_MAX_SCORES = 1 << 24  # scores held at once, 64 MB: a batch has fewer users where the catalogue is large


def held_out_of(histories: Histories, split: Split) -> Interactions:
    """Returns the held-out interactions of a split."""
    return histories.test if split == "test" else histories.validation


@dataclass(frozen=True, slots=True)
class UserBatch:
    """B users with their held-out items, R, and seen items; `*_rows` are rows of `user_idx`, ascending if held out."""

    user_idx: Int64s
    held_out_rows: Int64s
    held_out_items: Int64s
    held_out_ratings: Float32s | None
    seen_rows: Int64s
    seen_items: Int64s
    num_items: int


def unseen_batches(
    histories: Histories, *, num_items: int, recipe: EvaluateRecipe, split: Split, seed: int, share: float = 1.0
) -> Iterator[UserBatch]:
    """Yields the users who have held-out items in a split, or a share of them; see `rank_users`."""
    held_out = held_out_of(histories, split)
    seen = [histories.training] + ([histories.validation] if split == "test" else [])
    users_per_batch = max(1, min(recipe.users_per_batch, _MAX_SCORES // num_items))
    is_chosen = (held_out.lengths > 0) & choose_users(histories.user_idx, share, seed)
    for users in _batches(np.flatnonzero(is_chosen), users_per_batch):
        yield UserBatch(
            histories.first_user_idx + users,
            *items_of(held_out, users),
            None if held_out.rating is None else held_out.rating[positions_of_rows(held_out.offsets, users)],
            *_seen_items(seen, users),
            num_items,
        )


def choose_users(user_idx: Int64s, share: float, seed: int) -> Bools:
    """Returns which users are in a sample of about `share` of all, bool[B].

    Args:
        user_idx: int64[B].
        share: From 1 on, every user is chosen.
        seed: Of the recipe.
    """
    if share >= 1.0:
        return np.ones(len(user_idx), np.bool_)
    return derive_keys(derive_key(seed, _CHOICE), user_idx) < np.uint64(share * 2.0**64)


def draw_unseen(
    user_idx: Int64s, held_out_item_idx: Int64s, excluded: ExcludedItems, rows: Int64s, *, num_drawn: int, seed: int
) -> tuple[Int64s, Bools]:
    """Returns N distinct allowed items for each list, int64[R, N], and which of them were drawn, bool[R, N].

    A user with m < N allowed items gets those m; the other entries are undefined.

    Args:
        user_idx: Of each list, int64[R].
        held_out_item_idx: Of each list, int64[R].
        excluded: Items that may not be drawn: all that the user has seen, and the held-out ones.
        rows: Row of each list's user in `excluded`, int64[R].
        num_drawn: N.
        seed: Of the recipe.
    """
    keys = derive_keys(derive_keys(derive_key(seed, _DRAWS), user_idx), held_out_item_idx)
    bits = random_bits(keys[:, None], np.arange(num_drawn))
    num_allowed = excluded.num_allowed(rows)
    ranks = np.full((len(rows), num_drawn), -1, np.int64)
    for column in range(num_drawn):
        highest = num_allowed - num_drawn + column
        bounds = np.maximum(highest + 1, 1).astype(np.uint64)
        drawn = scale_to_each(bits[:, column], bounds).astype(np.int64)
        is_taken = (ranks[:, :column] == drawn[:, None]).any(axis=1)
        ranks[:, column] = np.where(is_taken, highest, drawn)
        ranks[highest < 0, column] = -1
    is_drawn = ranks >= 0
    items = excluded.nth_allowed(np.repeat(rows, num_drawn), np.maximum(ranks, 0).reshape(-1)).reshape(ranks.shape)
    return np.where(is_drawn, items, 0), is_drawn


def items_of(part: Interactions, users: Int64s) -> tuple[Int64s, Int64s]:
    """Returns (row in `users` of each item's user, item) of the interactions of some users."""
    rows = np.repeat(np.arange(len(users)), part.lengths[users])
    return rows, part.item_idx[positions_of_rows(part.offsets, users)].astype(np.int64)


def _seen_items(parts: list[Interactions], users: Int64s) -> tuple[Int64s, Int64s]:
    rows, items = zip(*(items_of(part, users) for part in parts), strict=True)
    return np.concatenate(rows), np.concatenate(items)


def _batches(users: Int64s, size: int) -> Iterator[Int64s]:
    for start in range(0, len(users), size):
        yield users[start : start + size]
