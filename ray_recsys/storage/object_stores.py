"""Clients of obstore, for what pyarrow lacks: conditional put, and deletion that leaves no empty folders."""

import datetime as dt
import importlib
from functools import lru_cache
from typing import Any

from obstore.store import from_url

from ray_recsys.storage.location import Location, s3_options

_SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss")
_RETRIES: Any = {"max_retries": 5, "retry_timeout": dt.timedelta(seconds=60)}


def has_conditional_put(location: Location) -> bool:
    """Returns whether obstore has a client for the location's scheme."""
    return location.scheme in _SCHEMES


def open_store(location: Location) -> tuple[Any, str]:
    """Returns obstore's client of a bucket, one a process, and the path in it."""
    root, _, path = location.path.partition("/")
    return _open_store(location.scheme, root, location.query), path


@lru_cache(maxsize=16)
def _open_store(scheme: str, root: str, query: str) -> Any:
    options = s3_options(query) if scheme == "s3" else {}
    client: Any = {"timeout": "20s", "connect_timeout": "5s"}
    config: dict[str, Any] = {"client_options": client, "retry_config": _RETRIES}
    if scheme == "s3":
        if options.get("endpoint", "").startswith("http://"):
            client["allow_http"] = True
        config |= {**options, "credential_provider": _aws_credentials()}
    return from_url(f"{scheme}://{root}", **config)


def _aws_credentials() -> Any:
    """Returns boto3's credentials where it is installed, profiles of ~/.aws included; None: obstore's own search."""
    try:
        provider = importlib.import_module("obstore.auth.boto3").Boto3CredentialProvider
    except ImportError:
        return None
    try:
        return provider()
    except ValueError:  # it found none
        return None
