"""The error tree; an error's class determines the command's exit status.

    RecsysError
    ├── InputError                 exit 2: the user's input is wrong; message and remedy say what to change
    │   ├── RecipeError            a recipe's key or value
    │   ├── DataError              an interaction log, side file or id list
    │   │   └── EmptyDataError     nothing is left after filtering
    │   ├── ArtifactError          a prepared set, run or bundle
    │   │   ├── SchemaVersionError written by another schema version
    │   │   ├── IntegrityError     truncated or changed
    │   │   └── BundleRefusedError intact, but its answers differ from the recorded ones or are invalid
    │   ├── RegistryError          a registry without a live bundle
    │   ├── ClusterError           a Ray address, port or resource that is not available
    │   └── AccessError            a bucket or URI that cannot be used: missing, forbidden or unsupported
    ├── WorseModelError            exit 3: the quality gate kept the live bundle
    ├── StorageError               exit 1: an object store that did not answer in time
    ├── ConflictError              exit 1: another process changed the same small file meanwhile
    └── StageError                 exit 1: a stage failed although its input was good

The package's own invariants are `assert`s, never errors of this tree.
"""


class RecsysError(Exception):
    """Root of every error that the package raises on purpose.

    Args:
        message: What is wrong: the offending value and where it is.
        remedy: What to do about it; shown after the message.
    """

    exit_status = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class InputError(RecsysError):
    """Input or usage is wrong."""

    exit_status = 2


class RecipeError(InputError):
    """A recipe has an unknown key or a value out of range."""


class DataError(InputError):
    """A log, side file or id list cannot be used."""


class EmptyDataError(DataError):
    """Nothing is left after filtering; the message says which filter removed what."""


class ArtifactError(InputError):
    """A prepared set, run or bundle is missing or cannot be used."""


class SchemaVersionError(ArtifactError):
    """An artefact was written by another schema version."""


class IntegrityError(ArtifactError):
    """A file of an artefact is missing, truncated or changed."""


class BundleRefusedError(ArtifactError):
    """A bundle is intact, but its answers differ from the recorded ones, or it cannot answer."""


class RegistryError(InputError):
    """A registry has no live bundle."""


class ClusterError(InputError):
    """A Ray address, a port or a resource is not available."""


class AccessError(InputError):
    """A bucket or URI cannot be used: it is missing, forbidden or unsupported."""


class WorseModelError(RecsysError):
    """A model is worse than the live one on the same data; nothing was published."""

    exit_status = 3


class StorageError(RecsysError):
    """An object store failed to answer correctly, even after retries."""


class ConflictError(RecsysError):
    """Another process changed the same file meanwhile; nothing was overwritten."""


class StageError(RecsysError):
    """A stage failed although its input was good."""
