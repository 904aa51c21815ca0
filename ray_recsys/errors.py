"""The error tree; an error's class decides the exit status of the command that meets it.

    RecsysError
    ├── InputError                 exit 2: what the user gave is wrong, and the message says how to mend it
    │   ├── RecipeError            a recipe's key or value
    │   ├── DataError              an interaction log, side file or id list
    │   │   └── EmptyDataError     nothing is left after filtering
    │   ├── ArtifactError          a prepared set, run or bundle
    │   │   ├── SchemaVersionError it was written by another schema version
    │   │   └── IntegrityError     it is truncated or changed
    │   ├── RegistryError          a registry without a live bundle
    │   └── ClusterError           a Ray address, port or resource that is not there
    └── StageError                 exit 1: a stage failed although its input was good

Own invariants are `assert`s, never errors of this tree.
"""


class RecsysError(Exception):
    """Root of every error that the package raises on purpose."""

    exit_status = 1


class InputError(RecsysError):
    """Input or usage is wrong; the message names the value, the place and the remedy."""

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
    """An artefact's file is missing, truncated or changed."""


class RegistryError(InputError):
    """A registry has no live bundle."""


class ClusterError(InputError):
    """A Ray address, a port or a resource is not available."""


class StageError(RecsysError):
    """A stage failed although its input was good."""
