"""RMSE and MAE of predicted ratings, as sums over held-out interactions that add up exactly."""

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from ray_recsys.core.arrays import Float32s

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
