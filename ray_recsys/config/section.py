"""Common behaviour of recipe sections: strict keys, TOML's word for null, and no booleans in place of numbers."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused."""

    # inf is a number to TOML, but a recipe that holds it could not be written to JSON and read back
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _read_toml_words(cls, data: Any) -> Any:
        """TOML has no null: the word none stands for it. And true is not the number 1."""
        if not isinstance(data, Mapping):
            return data
        for key, value in data.items():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation is not bool:
                raise ValueError(f"{key} = {str(value).lower()}: true and false are for switches alone")
        return {key: None if value == "none" else value for key, value in data.items()}
