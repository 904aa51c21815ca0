"""Distributions of a search space: what `[tune.space]` gives for a recipe key."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from ray_recsys.config.section import Section

Scalar = bool | int | float | str


class Choice(Section):
    """One of some values, each with the same probability."""

    choice: tuple[Scalar | tuple[Scalar, ...], ...] = Field(min_length=1)

    def bounds(self) -> tuple[Any, ...]:
        """Returns the values that a recipe must accept."""
        return self.choice


class Uniform(Section):
    """A number between two, each with the same probability."""

    uniform: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.uniform[0] >= self.uniform[1]:
            raise ValueError(f"uniform = {list(self.uniform)}: the first number must be below the second")
        return self

    def bounds(self) -> tuple[Any, ...]:
        """Returns the values that a recipe must accept."""
        return self.uniform


class LogUniform(Section):
    """A number between two, whose logarithm is uniform."""

    log_uniform: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.log_uniform[0] < self.log_uniform[1]:
            raise ValueError(f"log_uniform = {list(self.log_uniform)}: must be two rising numbers above 0")
        return self

    def bounds(self) -> tuple[Any, ...]:
        """Returns the values that a recipe must accept."""
        return self.log_uniform


Distribution = Choice | Uniform | LogUniform
KINDS = ("choice", "uniform", "log_uniform")


def flatten_space(data: Any) -> Any:
    """Returns `{section: {key: distribution}}` as `{section.key: distribution}`; either form may be given."""
    if not isinstance(data, Mapping):
        return data
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and not any(kind in value for kind in KINDS):
            flat.update({f"{name}.{key}": inner for key, inner in flatten_space(value).items()})
        else:
            flat[name] = value
    return flat
