"""All models by their names in recipes. A new model is one file and one line here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray_recsys.core.models import ease, ensemble, ials, item_knn, lightgcn, mf, neumf, popularity, user_knn
from ray_recsys.core.models.contract import Build, Fit, Model
from ray_recsys.core.models.files import Arrays, Header, read_model_arrays, read_model_header
from ray_recsys.errors import IntegrityError, SchemaVersionError


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Constructors of a model: either built and trained by gradient descent, or fitted; and its loader."""

    label: str
    """Display name."""
    load: Callable[[Header, Arrays], Model]
    build: Build | None = None
    splits_users: bool = False
    """Whether workers that train it may have the rows of some users each; see `GradientModel.batch_tables`."""
    fit: Fit | None = None

    def __post_init__(self) -> None:
        assert (self.build is None) != (self.fit is None), self.label


MODELS: dict[str, ModelSpec] = {
    "popularity": ModelSpec("Popularity", popularity.load, fit=popularity.fit),
    "item_knn": ModelSpec("ItemKNN", item_knn.load, fit=item_knn.fit),
    "user_knn": ModelSpec("UserKNN", user_knn.load, fit=user_knn.fit),
    "ease": ModelSpec("EASE", ease.load, fit=ease.fit),
    "ials": ModelSpec("iALS", ials.load, fit=ials.fit),
    "mf": ModelSpec("MF", mf.load, build=mf.build, splits_users=True),
    "gmf": ModelSpec("GMF", mf.load, build=mf.build, splits_users=True),
    "mlp": ModelSpec("MLP", neumf.load, build=neumf.build, splits_users=True),
    "neumf": ModelSpec("NeuMF", neumf.load, build=neumf.build, splits_users=True),
    "lightgcn": ModelSpec("LightGCN", lightgcn.load, build=lightgcn.build),
}


def load_model(directory: Path) -> Model:
    """Returns the model that `Model.save` wrote into a directory.

    Raises:
        SchemaVersionError: It is of a model that this version does not have.
        IntegrityError: A file is missing or damaged, or the two do not belong together.
    """
    header = read_model_header(directory)
    name = header["name"]
    if name not in MODELS and name != ensemble.NAME:
        raise SchemaVersionError(
            f"{directory} holds a {name!r} model; this ray_recsys has {', '.join(sorted(MODELS))}",
            remedy="train it again with this version",
        )
    arrays = read_model_arrays(directory)
    try:
        if name == ensemble.NAME:
            return ensemble.load(header, arrays, lambda its, values: MODELS[its["name"]].load(its, values))
        return MODELS[name].load(header, arrays)
    except (KeyError, ValueError, RuntimeError) as error:
        raise IntegrityError(f"{directory}: model.safetensors does not belong to model.json: {error}") from error
