"""Lookups are those of a dict, and texts are integers exactly where Python writes the same text for the number."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_recsys.core.vocabulary import Vocabulary, are_integers, integers_of, write_vocabulary
from ray_recsys.errors import DataError

INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40, unique=True)
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=40, unique=True)
NEAR_THE_LIMITS = st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**18, 10**18 - 1, 10**19, 0])
NUMBERS = st.one_of(
    st.integers().map(str), NEAR_THE_LIMITS.map(str), st.text("-+0129. ", max_size=4), st.sampled_from(["-0", "--1"])
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.one_of(INTEGERS, TEXTS), asked=st.one_of(INTEGERS, TEXTS))
def test_lookup_is_that_of_a_dict(tmp_path: Path, ids: list[int | str], asked: list[int | str]) -> None:
    write_vocabulary(tmp_path / "v.arrow", pa.array(ids))
    vocabulary = Vocabulary.open(tmp_path / "v.arrow")
    index = {str(external_id): idx for idx, external_id in enumerate(ids)}
    assert vocabulary.ids_of(vocabulary.lookup(ids).known).to_pylist() == ids
    queries = [*asked, *ids]
    found = vocabulary.lookup(queries)
    as_texts = vocabulary.lookup(pa.array([str(external_id) for external_id in queries], pa.large_string()))
    assert as_texts.is_known.tolist() == found.is_known.tolist()
    assert as_texts.known.tolist() == found.known.tolist()
    for position, external_id in enumerate(queries):
        expected = index.get(str(external_id))
        assert vocabulary.find(external_id) == expected
        assert bool(found.is_known[position]) == (expected is not None)
        assert expected is None or found.idx[position] == expected
    assert found.num_unknown == sum(str(external_id) not in index for external_id in queries)


def test_a_null_and_an_integer_too_large_are_unknown(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "v.arrow", pa.array([3, 1]))
    vocabulary = Vocabulary.open(tmp_path / "v.arrow")
    assert vocabulary.lookup([None, 1]).is_known.tolist() == [False, True]
    assert vocabulary.find(2**70) is None
    assert vocabulary.find("03") is None
    assert vocabulary.find("3") == 0


@pytest.mark.parametrize("ids", [[1, 1], [1, None], []])
def test_ids_that_make_no_vocabulary_are_refused(tmp_path: Path, ids: list[int | None]) -> None:
    with pytest.raises(DataError):
        write_vocabulary(tmp_path / "v.arrow", pa.array(ids, pa.int64()))


def reference(text: str) -> int | None:
    try:
        value = int(text)
    except ValueError:
        return None
    return value if str(value) == text and -(2**63) <= value < 2**63 else None


@given(st.lists(st.none() | NUMBERS, max_size=20))
def test_integers_of_texts_are_those_of_python(texts: list[str | None]) -> None:
    expected = [None if text is None else reference(text) for text in texts]
    for kind in (pa.string(), pa.large_string()):
        assert integers_of(pa.array(texts, kind)).to_pylist() == expected
    given_texts = [text for text in texts if text is not None]
    assert are_integers(pa.array(texts, pa.string())) == all(reference(text) is not None for text in given_texts)
