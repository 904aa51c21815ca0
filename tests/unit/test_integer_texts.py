"""Texts are integers exactly where Python writes the same text for the number, and int64 holds it."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.core.vocabulary import are_integers, integers_of

NEAR_THE_LIMITS = st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**18, 10**18 - 1, 10**19, 0])
TEXTS = st.one_of(
    st.integers().map(str), NEAR_THE_LIMITS.map(str), st.text("-+0129. ", max_size=4), st.sampled_from(["-0", "--1"])
)


def reference(text: str) -> int | None:
    try:
        value = int(text)
    except ValueError:
        return None
    return value if str(value) == text and -(2**63) <= value < 2**63 else None


@given(st.lists(st.none() | TEXTS, max_size=20))
def test_equals_python(texts: list[str | None]) -> None:
    expected = [None if text is None else reference(text) for text in texts]
    for kind in (pa.string(), pa.large_string()):
        assert integers_of(pa.array(texts, kind)).to_pylist() == expected
    given_texts = [text for text in texts if text is not None]
    assert are_integers(pa.array(texts, pa.string())) == all(reference(text) is not None for text in given_texts)
