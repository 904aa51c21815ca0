"""Texts that are integers in plain decimal form: `7` and `-7`, not `07`, `+7`, `7.0` or what int64 cannot hold."""

import pyarrow as pa
import pyarrow.compute as pc

_PLAIN = r"^(0|-?[1-9][0-9]{0,18})$"
_LEAST, _MOST = str(-(2**63)), str(2**63 - 1)


def integers_of(texts: pa.Array) -> pa.Array:
    """Returns the integers that texts are, int64; null for a text that is none, and for null."""
    digits = pc.utf8_ltrim(texts, characters="-")
    # Texts of equal length are in the order of their numbers; all shorter ones fit.
    is_short = pc.less(pc.utf8_length(digits), len(_MOST))
    fits = pc.or_(pc.or_(is_short, pc.less_equal(digits, _MOST)), pc.equal(texts, _LEAST))
    is_integer = pc.and_(pc.match_substring_regex(texts, _PLAIN), fits)
    return pc.if_else(is_integer, texts, pa.scalar(None, texts.type)).cast(pa.int64())


def are_integers(texts: pa.Array) -> bool:
    """Whether each text that is not null is an integer."""
    return bool(integers_of(texts).null_count == texts.null_count)
