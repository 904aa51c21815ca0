"""Substring search of titles with a trigram index, which reads only titles that may match.

Source: Zobel, Moffat: Inverted Files for Text Search Engines, ACM Computing Surveys 2006, section 3 (postings).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.core.arrays import Int32s, Int64s

_SCAN_ROWS = 4096  # titles scanned at a time, for a text too short for a trigram: few blocks give enough matches


@dataclass(frozen=True, slots=True)
class TitleIndex:
    """Finds the rows whose text contains another, in any case; the arrays may be mapped into memory.

    Attributes:
        texts: One text a row, in lower case.
        grams: Distinct trigrams, ascending, uint32[G].
        starts: Row g of the postings is `rows[starts[g]:starts[g + 1]]`, int64[G + 1].
        rows: Rows with each trigram, ascending, int32.
    """

    texts: pa.LargeStringArray
    grams: npt.NDArray[np.uint32]
    starts: Int64s
    rows: Int32s

    @classmethod
    def build(cls, texts: pa.Array) -> Self:
        """Returns the index of texts; nulls contain nothing."""
        lower = pc.utf8_lower(texts.cast(pa.large_string())).fill_null("")
        offsets = np.frombuffer(lower.buffers()[1], np.int64)[: len(lower) + 1]
        data = lower.buffers()[2]
        grams = _trigrams(np.frombuffer(data, np.uint8)[: offsets[-1]] if data else np.zeros(0, np.uint8))
        rows = np.repeat(np.arange(len(lower), dtype=np.int32), np.diff(offsets))[: len(grams)]
        is_within = np.arange(len(grams)) + 3 <= offsets[1:][rows] if len(grams) else np.zeros(0, bool)
        keys = np.unique((grams[is_within].astype(np.int64) << 32) | rows[is_within])
        distinct, starts = np.unique((keys >> 32).astype(np.uint32), return_index=True)
        return cls(lower, distinct, np.append(starts, len(keys)), (keys & 0xFFFFFFFF).astype(np.int32))

    def search(self, text: str, limit: int) -> Int32s:
        """Returns the first rows, at most `limit`, that contain a text; an empty text is in every row."""
        wanted: str = pc.utf8_lower(pa.scalar(text, pa.large_string())).as_py()
        grams = np.unique(_trigrams(np.frombuffer(wanted.encode(), np.uint8)))
        if not len(grams):
            return self._scan(wanted, limit)
        found = np.searchsorted(self.grams, grams)
        if (found == len(self.grams)).any() or (self.grams[found] != grams).any():
            return np.zeros(0, np.int32)
        rarest = found[np.argmin(self.starts[found + 1] - self.starts[found])]
        rows = self.rows[self.starts[rarest] : self.starts[rarest + 1]]
        is_hit = pc.match_substring(self.texts.take(pa.array(rows)), wanted).to_numpy(zero_copy_only=False)
        hits: Int32s = rows[is_hit][:limit]
        return hits

    def _scan(self, wanted: str, limit: int) -> Int32s:
        hits = [np.zeros(0, np.int32)]
        for first in range(0, len(self.texts), _SCAN_ROWS):
            is_hit = pc.match_substring(self.texts[first : first + _SCAN_ROWS], wanted)
            hits.append((first + np.flatnonzero(is_hit.to_numpy(zero_copy_only=False))).astype(np.int32))
            if sum(map(len, hits)) >= limit:
                break
        return np.concatenate(hits)[:limit]


def _trigrams(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Returns the trigram at each byte but the last two."""
    wide = text.astype(np.uint32)
    if len(text) < 3:
        return np.zeros(0, np.uint32)
    return ((wide[:-2] << 16) | (wide[1:-1] << 8) | wide[2:]).astype(np.uint32)
