"""Metrics and errors of ratings as sums over users that add up exactly, and their means and standard errors.

Sums are kept in fixed point, so that they are the same bits however users are spread over batches, partitions and
workers. R held-out items, U users.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from ray_recsys.core.arrays import Float32s, Float64s
from ray_recsys.core.evaluation.metrics import RankedLists, values_by_user

_UNIT = 1 << 40  # values in [0, 1] are summed as multiples of 2^-40: exact for any number of users
_ERROR_UNIT = 1 << 20  # errors of ratings, which may be large, as multiples of 2^-20


class RatingErrors(BaseModel):
    """Sums of errors of predicted ratings over held-out interactions; those of disjoint ones add up."""

    model_config = ConfigDict(frozen=True)

    num_ratings: int = 0
    absolute: int = 0
    """Sum of |error|, in units of 2^-20."""
    squared: int = 0
    """Sum of error^2, likewise."""
    fourth: int = 0
    """Sum of error^4, likewise; for the standard error of RMSE."""

    @classmethod
    def of(cls, predicted: Float32s, ratings: Float32s) -> Self:
        """Returns the sums of R predicted and given ratings."""
        error = predicted.astype(np.float64) - ratings
        absolute, squared, fourth = (int(np.rint(np.abs(error) ** power * _ERROR_UNIT).sum()) for power in (1, 2, 4))
        return cls(num_ratings=len(error), absolute=absolute, squared=squared, fourth=fourth)

    def __add__(self, other: Self) -> Self:
        """Returns the sums over the held-out interactions of both."""
        names = type(self).model_fields
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def means(self) -> dict[str, float]:
        """Returns RMSE and MAE; nothing without ratings."""
        if not self.num_ratings:
            return {}
        mean_square, mean_absolute = self._mean(self.squared), self._mean(self.absolute)
        return {"RMSE": float(np.sqrt(mean_square)), "MAE": mean_absolute}

    def standard_errors(self) -> dict[str, float]:
        """Returns the standard errors of RMSE (by the delta method) and MAE over held-out interactions."""
        if not self.num_ratings:
            return {}
        means, mean_square = self.means(), self._mean(self.squared)
        square_error = np.sqrt(max(0.0, self._mean(self.fourth) - mean_square**2) / self.num_ratings)
        absolute_error = np.sqrt(max(0.0, mean_square - means["MAE"] ** 2) / self.num_ratings)
        return {"RMSE": float(square_error / max(2 * means["RMSE"], 1e-12)), "MAE": float(absolute_error)}

    def _mean(self, total: int) -> float:
        return total / _ERROR_UNIT / self.num_ratings


class MetricSums(BaseModel):
    """Numerators and denominators of all metrics over some users; those of disjoint users add up."""

    model_config = ConfigDict(frozen=True)

    num_users: int = 0
    """Users with a held-out item: the denominator of every metric."""
    num_held_out: int = 0
    num_lists: int = 0
    num_candidates: int = 0
    """Over all lists."""
    sums: dict[str, int] = {}
    """Users' values by metric, in units of 2^-40."""
    squares: dict[str, int] = {}
    """Squares of users' values by metric, in units of 2^-40."""
    errors: RatingErrors = RatingErrors()
    """Of predicted ratings, where the model predicts them."""

    @classmethod
    def of(
        cls, lists: RankedLists, *, ks: Sequence[int], num_candidates: int, errors: RatingErrors | None = None
    ) -> Self:
        """Returns the sums over the users of some lists, which hold `num_candidates` in all."""
        counts = {
            "num_users": int(lists.user_of.max(initial=-1)) + 1,
            "num_held_out": len(lists.ranks),
            "num_lists": lists.num_lists,
            "num_candidates": num_candidates,
        }
        sums = cls.of_values(values_by_user(lists, ks)).model_copy(update=counts)
        return sums if errors is None else sums.model_copy(update={"errors": errors})

    @classmethod
    def of_values(cls, by_user: Mapping[str, Float64s]) -> Self:
        """Returns the sums of values of U users, float64[U] in [-1, 1], by name."""
        return cls(
            num_users=len(next(iter(by_user.values()))),
            sums={name: _fixed_sum(values) for name, values in by_user.items()},
            squares={name: _fixed_sum(values * values) for name, values in by_user.items()},
        )

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Returns the sums over all parts' users."""
        result = cls()
        for part in parts:
            result = result + part
        return result

    def __add__(self, other: Self) -> Self:
        """Returns the sums over the users of both, who must be different ones."""
        return type(self)(
            num_users=self.num_users + other.num_users,
            num_held_out=self.num_held_out + other.num_held_out,
            num_lists=self.num_lists + other.num_lists,
            num_candidates=self.num_candidates + other.num_candidates,
            sums=_add(self.sums, other.sums),
            squares=_add(self.squares, other.squares),
            errors=self.errors + other.errors,
        )

    def means(self) -> dict[str, float]:
        """Returns the value of each metric; there must be a user."""
        ranking = {name: value / _UNIT / self.num_users for name, value in self.sums.items()}
        return ranking | self.errors.means()

    def standard_errors(self) -> dict[str, float]:
        """Returns the standard error of each mean over users; for one 0/1 value a user, the binomial one."""
        means = self.means()
        variances = {name: total / _UNIT / self.num_users - means[name] ** 2 for name, total in self.squares.items()}
        ranking = {name: float(np.sqrt(max(0.0, value) / self.num_users)) for name, value in variances.items()}
        return ranking | self.errors.standard_errors()


def _fixed_sum(values: Float64s) -> int:
    return int(np.rint(values * _UNIT).astype(np.int64).sum())


def _add(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {name: left.get(name, 0) + right.get(name, 0) for name in {**left, **right}}
