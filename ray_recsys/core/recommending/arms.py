"""Arms: versions of a registry that serve a share of the users alongside the live one, in the registry's file ARMS.

A user's arm follows from a hash of the id, so it is stable over replicas and restarts. The live version is the arm A;
it serves all users who are in no other arm.
"""

import hashlib
import json
import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_recsys.core.vocabulary import ExternalId
from ray_recsys.errors import RegistryError
from ray_recsys.storage.location import Location, LocationLike
from ray_recsys.storage.pointers import Pointer, read_pointer, replace_pointer

ARMS = "ARMS"
LIVE = "A"
MAX_ARMS = 2  # in addition to the live version: each stays loaded in every replica
_NAME = re.compile(r"[A-Za-z0-9_-]{1,20}")
_STEPS = 10_000  # a user's draw, so that percentages may have two decimals


class Arm(BaseModel):
    """A version that serves alongside the live one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    version: str
    percent: float = Field(gt=0, le=100)
    """Part of the users, who are the same ones while the percentages of the arms before it by name stay."""
    shadow: bool = False
    """These users get the live version's answers; this version answers as well, for metrics only."""


def read_arms(registry: LocationLike) -> list[Arm]:
    """Returns the arms of a registry by name, none if it has no file ARMS.

    Raises:
        RegistryError: The file cannot be read.
    """
    return _parse(registry, _read(registry))


def set_arm(registry: LocationLike, arm: Arm) -> None:
    """Adds an arm, or replaces the one of its name.

    Raises:
        RegistryError: The name cannot be used, or there would be too many arms, or more than 100 % of the users.
        ConflictError: Another process changed the arms at the same time.
    """
    if not _NAME.fullmatch(arm.name) or arm.name == LIVE:
        raise RegistryError(f"arm {arm.name!r}: the name must be letters, digits, - or _, and not {LIVE}")
    before = _read(registry)
    arms = [*(one for one in _parse(registry, before) if one.name != arm.name), arm]
    total = sum(one.percent for one in arms)
    if len(arms) > MAX_ARMS or total > 100:
        taken = ", ".join(f"{one.name} {one.percent:g} %" for one in arms)
        raise RegistryError(
            f"{taken}: at most {MAX_ARMS} arms and 100 % of the users, besides the live version",
            remedy="end one with `ray-recsys registry end`",
        )
    _replace(registry, arms, before)


def end_arm(registry: LocationLike, name: str) -> Arm:
    """Removes an arm; its users are answered by the live version again. Returns it.

    Raises:
        RegistryError: There is no arm of this name.
        ConflictError: Another process changed the arms at the same time.
    """
    before = _read(registry)
    arms = _parse(registry, before)
    ended = [one for one in arms if one.name == name]
    if not ended:
        here = ", ".join(one.name for one in arms) or "none"
        raise RegistryError(f"registry {Location.of(registry)} has no arm {name!r}; it has {here}")
    _replace(registry, [one for one in arms if one.name != name], before)
    return ended[0]


def choose_arm(arms: Sequence[Arm], user_id: ExternalId | None) -> Arm | None:
    """Returns the arm of a user; None: the live version, as for anonymous requests.

    Args:
        arms: By name.
        user_id: 7 and "7" are the same user.
    """
    if not arms or user_id is None:
        return None
    digest = hashlib.blake2b(str(user_id).encode("utf8", "surrogatepass"), digest_size=8).digest()
    draw = int.from_bytes(digest, "big") % _STEPS
    upper = 0.0
    for arm in arms:
        upper += arm.percent * _STEPS / 100
        if draw < upper:
            return arm
    return None


def _read(registry: LocationLike) -> Pointer:
    return read_pointer(Location.of(registry) / ARMS)


def _parse(registry: LocationLike, pointer: Pointer) -> list[Arm]:
    if pointer.text is None:
        return []
    try:
        return sorted((Arm.model_validate(one) for one in json.loads(pointer.text)), key=lambda arm: arm.name)
    except (ValueError, ValidationError, TypeError) as error:
        raise RegistryError(f"{Location.of(registry) / ARMS} cannot be read ({error})", remedy="remove it") from error


def _replace(registry: LocationLike, arms: Sequence[Arm], before: Pointer) -> None:
    text = json.dumps([arm.model_dump() for arm in sorted(arms, key=lambda arm: arm.name)], indent=2) + "\n"
    replace_pointer(Location.of(registry) / ARMS, text, before)
