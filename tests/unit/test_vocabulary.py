from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_recsys.core.vocabulary import Vocabulary, write_vocabulary
from ray_recsys.errors import DataError

INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40, unique=True)
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=40, unique=True)


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
    for place, external_id in enumerate(queries):
        expected = index.get(str(external_id))
        assert vocabulary.find(external_id) == expected
        assert bool(found.is_known[place]) == (expected is not None)
        assert expected is None or found.idx[place] == expected
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
