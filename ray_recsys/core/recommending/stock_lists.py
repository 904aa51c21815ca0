"""Named lists of items, such as what is in stock, kept in the registry so that every replica sees them.

    lists/INDEX                     names, digests and sizes, as JSON
    lists/NAME-DIGEST.json          ids, never changed

A list outlives the bundles: it holds ids, which are looked up in each bundle.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ray_recsys.core.vocabulary import ExternalId
from ray_recsys.errors import RegistryError
from ray_recsys.storage.files import delete_file, read_bytes, write_bytes
from ray_recsys.storage.location import Location, LocationLike
from ray_recsys.storage.pointers import Pointer, read_pointer, replace_pointer

FOLDER, INDEX = "lists", "INDEX"
MAX_LISTS = 100
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class StockList(BaseModel):
    """Index entry of a list."""

    model_config = ConfigDict(frozen=True)

    digest: str
    num_items: int


_INDEX = TypeAdapter(dict[str, StockList])


class StockLists:
    """The lists of a registry.

    Args:
        registry: Location of the registry.
    """

    def __init__(self, registry: LocationLike) -> None:
        self._home = Location.of(registry) / FOLDER

    def index(self) -> dict[str, StockList]:
        """Returns the index entries by name.

        Raises:
            RegistryError: The index cannot be read.
        """
        return self._parse(self._pointer())

    def put(self, name: str, item_ids: Sequence[ExternalId]) -> StockList:
        """Writes a list, or replaces the one of its name.

        Raises:
            RegistryError: The name cannot be used, or there are too many lists.
            ConflictError: Another process changed the lists at the same time.
        """
        if not NAME.fullmatch(name):
            raise RegistryError(f"list {name[:80]!r}: the name must be 1 to 64 letters, digits, - or _")
        before = self._pointer()
        index = self._parse(before)
        if name not in index and len(index) >= MAX_LISTS:
            raise RegistryError(f"list {name!r} would be one of more than {MAX_LISTS}", remedy="delete one first")
        content = json.dumps(list(item_ids)).encode()
        added = StockList(digest=hashlib.sha256(content).hexdigest()[:16], num_items=len(item_ids))
        write_bytes(self._file(name, added), content)
        self._replace({**index, name: added}, before)
        self._forget(name, index.get(name), added)
        return added

    def delete(self, name: str) -> bool:
        """Removes a list; returns whether there was one.

        Raises:
            ConflictError: Another process changed the lists at the same time.
        """
        before = self._pointer()
        index = self._parse(before)
        removed = index.pop(name, None)
        if removed is None:
            return False
        self._replace(index, before)
        self._forget(name, removed, None)
        return True

    def read(self, name: str, entry: StockList) -> list[ExternalId]:
        """Returns the ids of a list.

        Raises:
            OSError: It was deleted: the list was replaced since the index was read.
        """
        ids: list[ExternalId] = json.loads(read_bytes(self._file(name, entry)))
        return ids

    def _pointer(self) -> Pointer:
        return read_pointer(self._home / INDEX)

    def _parse(self, pointer: Pointer) -> dict[str, StockList]:
        try:
            return {} if pointer.text is None else _INDEX.validate_json(pointer.text)
        except ValidationError as error:
            raise RegistryError(f"{self._home / INDEX} cannot be read ({error})", remedy="remove it") from error

    def _replace(self, index: dict[str, StockList], before: Pointer) -> None:
        replace_pointer(self._home / INDEX, _INDEX.dump_json(index).decode() + "\n", before)

    def _forget(self, name: str, old: StockList | None, new: StockList | None) -> None:
        if old is not None and old != new:
            with suppress(OSError):
                delete_file(self._file(name, old))

    def _file(self, name: str, entry: StockList) -> Location:
        return self._home / f"{name}-{entry.digest}.json"
