"""Search of titles by part of them, through an index of trigrams: a keystroke reads the few titles that may match.

Source: Zobel, Moffat: Inverted Files for Text Search Engines, ACM Computing Surveys 2006, section 3 (postings).
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.core.arrays import Int32s

_SCAN_ROWS = 4096  # at a time, for a text too short for a trigram: it is soon found often enough


class TitleIndex:
    """Finds the rows whose text contains another, in any case.

    Args:
        texts: One text a row; nulls contain nothing.
    """

    def __init__(self, texts: pa.Array) -> None:
        self._texts = pc.utf8_lower(texts.cast(pa.large_string())).fill_null("")
        offsets = np.frombuffer(self._texts.buffers()[1], np.int64)[: len(self._texts) + 1]
        data = self._texts.buffers()[2]
        grams = _trigrams(np.frombuffer(data, np.uint8)[: offsets[-1]] if data else np.zeros(0, np.uint8))
        rows = np.repeat(np.arange(len(self._texts), dtype=np.int32), np.diff(offsets))[: len(grams)]
        is_within = np.arange(len(grams)) + 3 <= offsets[1:][rows] if len(grams) else np.zeros(0, bool)
        keys = np.unique((grams[is_within].astype(np.int64) << 32) | rows[is_within])
        self._rows = (keys & 0xFFFFFFFF).astype(np.int32)
        self._grams, self._starts = np.unique((keys >> 32).astype(np.uint32), return_index=True)
        self._stops = np.append(self._starts[1:], len(keys))

    def search(self, text: str, limit: int) -> Int32s:
        """Returns the first rows, at most `limit`, that contain a text; an empty text is in every row."""
        wanted: str = pc.utf8_lower(pa.scalar(text, pa.large_string())).as_py()
        grams = np.unique(_trigrams(np.frombuffer(wanted.encode(), np.uint8)))
        if not len(grams):
            return self._scan(wanted, limit)
        found = np.searchsorted(self._grams, grams)
        if (found == len(self._grams)).any() or (self._grams[found] != grams).any():
            return np.zeros(0, np.int32)
        rarest = found[np.argmin(self._stops[found] - self._starts[found])]
        rows = self._rows[self._starts[rarest] : self._stops[rarest]]
        is_hit = pc.match_substring(self._texts.take(pa.array(rows)), wanted).to_numpy(zero_copy_only=False)
        hits: Int32s = rows[is_hit][:limit]
        return hits

    def _scan(self, wanted: str, limit: int) -> Int32s:
        hits = [np.zeros(0, np.int32)]
        for first in range(0, len(self._texts), _SCAN_ROWS):
            is_hit = pc.match_substring(self._texts[first : first + _SCAN_ROWS], wanted)
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
