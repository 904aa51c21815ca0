"""The stock lists as this process uses them: read when they change, as indices of each bundle."""

import asyncio
import time
from collections import OrderedDict

import numpy as np

from ray_recsys.core.arrays import Int32s
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.stock_lists import StockList, StockLists
from ray_recsys.serving.problems import unknown_id

POLL_S = 1.0
MAX_KEPT = 32  # lists as indices of a bundle, 4 bytes per item


class Stock:
    """Looks up lists by name; belongs to one event loop, which stays free while a list is read.

    Args:
        lists: Of the registry.
    """

    def __init__(self, lists: StockLists) -> None:
        self.lists = lists
        self._index: dict[str, StockList] = {}
        self._read_at_s = -np.inf
        self._kept: OrderedDict[tuple[str, str, str], Int32s] = OrderedDict()
        self._reading = asyncio.Lock()

    async def items(self, name: str, bundle: Bundle) -> Int32s:
        """Returns the items of a list that a bundle has, ascending; at most a second old.

        Raises:
            Problem: There is no list of this name.
        """
        await self._refresh()
        entry = self._index.get(name)
        if entry is None:
            raise unknown_id("list", name, "lists", "the registry")
        key = (name, entry.digest, bundle.version)
        if key not in self._kept:
            async with self._reading:
                if key not in self._kept:
                    self._kept[key] = await asyncio.to_thread(self._read, name, entry, bundle)
                    while len(self._kept) > MAX_KEPT:
                        self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def forget(self) -> None:
        """Makes the next request read the index again."""
        self._read_at_s = -np.inf

    async def _refresh(self) -> None:
        if time.monotonic() - self._read_at_s < POLL_S:
            return
        self._read_at_s = time.monotonic()
        self._index = await asyncio.to_thread(self.lists.index)

    def _read(self, name: str, entry: StockList, bundle: Bundle) -> Int32s:
        found = bundle.catalogue.vocabulary.lookup(self.lists.read(name, entry))
        return np.unique(found.known).astype(np.int32)
