"""Unwraps Ray errors: Ray keeps an exception of a task or worker in `cause`, under its own wrappers.

Does not import Ray, so that the command line can explain an error without it.
"""

from collections.abc import Iterator

from ray_recsys.errors import RecsysError

_MAX_DEPTH = 20  # a chain may contain itself


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, without Ray's layers, and then everything that caused it."""
    found: BaseException | None = error
    for _ in range(_MAX_DEPTH):
        if found is None:
            return
        inner = getattr(found, "cause", None)
        if isinstance(inner, BaseException):
            found = inner
            continue
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def own_error(error: BaseException) -> RecsysError | None:
    """Returns the package's own error in the chain, if there is one."""
    return next((cause for cause in causes(error) if isinstance(cause, RecsysError)), None)


def root_cause(error: BaseException) -> BaseException:
    """Returns the package's own error in the chain, or else the first cause."""
    own = own_error(error)
    return own if own is not None else [error, *causes(error)][-1]
