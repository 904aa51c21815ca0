"""An error of the package is found under whatever Ray and Python wrapped around it."""

import pytest

from ray_recsys.distributed.ray_errors import causes, own_error, root_cause
from ray_recsys.errors import DataError, StageError


class WrapperError(Exception):
    """Keeps what was raised in `cause`, as Ray's task and worker errors do."""

    def __init__(self, cause: object) -> None:
        super().__init__("a long remote traceback")
        self.cause = cause


class DisguisedDataError(WrapperError, DataError):
    """Ray also derives its errors from the class of what they wrap."""


def raised_from(error: BaseException, cause: BaseException) -> BaseException:
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


def test_the_inner_error_is_found_not_its_disguised_wrapper() -> None:
    own = DataError("row 3 is damaged", remedy="remove it")
    wrapped = DisguisedDataError(own)
    assert isinstance(wrapped, DataError)
    assert own_error(wrapped) is own
    assert own_error(WrapperError(wrapped)) is own
    assert own_error(raised_from(RuntimeError("training failed"), WrapperError(own))) is own
    assert root_cause(WrapperError(own)) is own


def test_of_two_own_errors_the_one_that_was_raised_last_is_reported() -> None:
    stage = StageError("prepare failed")
    assert own_error(raised_from(stage, DataError("row 3"))) is stage


def test_a_foreign_error_is_unwrapped_to_its_first_cause() -> None:
    first = KeyError("weights")
    error = WrapperError(raised_from(ValueError("bad checkpoint"), first))
    assert own_error(error) is None
    assert root_cause(error) is first
    assert [type(cause) for cause in causes(error)] == [ValueError, KeyError]


def test_suppressed_contexts_and_causes_that_are_no_errors_end_the_chain() -> None:
    unrelated = RuntimeError("unrelated")
    unrelated.__context__, unrelated.__suppress_context__ = DataError("handled"), True  # as `raise ... from None` does
    assert own_error(unrelated) is None
    assert root_cause(unrelated) is unrelated
    assert root_cause(text := WrapperError("only text")) is text


def test_a_chain_that_contains_itself_ends() -> None:
    error = WrapperError(None)
    error.cause = error
    assert list(causes(error)) == []
    assert own_error(error) is None
    assert root_cause(error) is error
