"""Minimum interactions of items and users: one round, of which a k-core is the fixed point.

A round looks at training rows only, so that rows held out by a time cut decide nothing.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_recsys.core.preparing.user_rows import UserRows


@dataclass(frozen=True, slots=True)
class Filtered:
    """The rows that a round kept, and those that it dropped, by reason."""

    rows: UserRows
    dropped: dict[str, UserRows]


def filter_round(
    rows: UserRows, num_users: int, is_kept_item: npt.NDArray[np.bool_], min_interactions_per_user: int
) -> Filtered:
    """Returns the rows without rare items and then without users who are left with too few.

    Args:
        rows: Deduplicated rows of whole users.
        num_users: U.
        is_kept_item: Whether an item has enough interactions over all partitions, bool[I].
        min_interactions_per_user: Least number of a user's interactions with kept items.
    """
    is_training = rows.is_training()
    is_rare_item = is_training & ~is_kept_item[rows.item]
    is_left = is_training & ~is_rare_item
    per_user = np.bincount(rows.user[is_left], minlength=num_users)
    is_rare_user = is_left & (per_user < min_interactions_per_user)[rows.user]
    dropped = {"rare_item": rows.take(is_rare_item), "rare_user": rows.take(is_rare_user)}
    kept = rows.take(~(is_rare_item | is_rare_user))
    return Filtered(kept, {reason: gone for reason, gone in dropped.items() if len(gone)})
