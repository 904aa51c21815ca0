"""A path or URI as one type, on a local disk or in an object store.

    data/prepared                        local
    s3://bucket/prepared                 S3; credentials from the environment, as every AWS client finds them
    s3://bucket/x?endpoint_override=HOST:PORT&scheme=http    an S3-compatible server, as does AWS_ENDPOINT_URL
    gs://bucket/x, abfs://…, hdfs://…    through pyarrow; any other scheme through fsspec

A URI with a password is refused: it would appear in logs, manifests and errors.
"""

import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ray_recsys.errors import AccessError

if TYPE_CHECKING:  # imported where they are needed: `--help` is quick
    import pyarrow.fs as pafs

_S3_OPTIONS = ("endpoint_override", "scheme", "region")
_S3_ATTEMPTS = 5  # of each request, with exponential backoff
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """An absolute local path, or a URI; `/` joins. Picklable, and without secrets."""

    path: str
    """Absolute; in an object store: bucket and key."""
    scheme: str = ""
    """Empty: local."""
    query: str = ""
    """Of the URI, e.g. `endpoint_override=HOST:PORT&scheme=http`."""

    @classmethod
    def of(cls, given: "LocationLike") -> Self:
        """Returns the location of a path or URI.

        Raises:
            AccessError: The URI contains a password.
        """
        if isinstance(given, cls):
            return given
        text = os.fspath(given)
        if "://" not in text:
            return cls(str(Path(text).absolute()))
        scheme, _, rest = text.partition("://")
        path, _, query = rest.partition("?")
        path = path.rstrip("/")
        user, at, _ = path.partition("/")[0].rpartition("@")
        if at and (":" in user or scheme == "s3"):
            raise AccessError(
                f"{scheme}://…@{path.rpartition('@')[2]} contains credentials",
                remedy="leave them to the environment, e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        if scheme == "file":
            return cls(str(Path(urllib.parse.unquote(path)).absolute()))
        return cls(path, scheme, query)

    def __truediv__(self, name: str) -> Self:
        """Returns the location of a file or folder inside this one."""
        return type(self)(str(PurePosixPath(self.path, name)), self.scheme, self.query) if name else self

    def __str__(self) -> str:
        """Returns the path, or the URI."""
        if self.is_local:
            return self.path
        return f"{self.scheme}://{self.path}" + (f"?{self.query}" if self.query else "")

    def __fspath__(self) -> str:
        """Returns the path of a local location, so that it can be opened like one."""
        if not self.is_local:
            raise TypeError(f"{self} is not on a local disk")
        return self.path

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine (or one that is mounted here)."""
        return not self.scheme

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.path).suffix

    @property
    def parent(self) -> Self:
        """The folder that it is in."""
        return type(self)(str(PurePosixPath(self.path).parent), self.scheme, self.query)

    def resolve(self) -> "tuple[pafs.FileSystem, str]":
        """Returns a filesystem, one a process, and the path in it.

        Raises:
            AccessError: Neither pyarrow nor fsspec supports the scheme.
        """
        import pyarrow.fs as pafs

        if self.is_local:
            return pafs.LocalFileSystem(), self.path
        root, _, rest = self.path.partition("/")
        filesystem, prefix = _filesystem(self.scheme, root, self.query)
        return filesystem, str(PurePosixPath(prefix, rest))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Lets pydantic's models hold locations; they are dumped as strings."""
        return core_schema.no_info_plain_validator_function(cls.of, serialization=core_schema.to_string_ser_schema())


LocationLike: TypeAlias = str | os.PathLike[str] | Location


@lru_cache(maxsize=64)
def _filesystem(scheme: str, root: str, query: str) -> "tuple[pafs.FileSystem, str]":
    """Returns the filesystem of a bucket, or of a server, and the path of its root in the filesystem."""
    if scheme == "s3":
        return _s3_filesystem(root, s3_options(query)), root
    return resolve_uri(f"{scheme}://{root}/" + (f"?{query}" if query else ""))


def resolve_uri(uri: str) -> "tuple[pafs.FileSystem, str]":
    """Returns the filesystem of a URI, pyarrow's or else fsspec's, and the path inside it.

    Raises:
        AccessError: Neither supports the scheme.
    """
    import fsspec
    import pyarrow as pa
    import pyarrow.fs as pafs

    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    else:
        return filesystem, path
    try:
        other, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise AccessError(
            f"cannot open {uri}: {error}", remedy="give a path or a URI that pyarrow or fsspec supports"
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(other)), path


def s3_options(query: str) -> Mapping[str, str]:
    """Returns endpoint (a URL; absent: AWS) and region (absent: the bucket's own) of a URI's query and environment.

    Raises:
        AccessError: The query has another option.
    """
    given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(given) - set(_S3_OPTIONS)):
        raise AccessError(f"unknown option {unknown[0]!r} of an S3 URI", remedy=f"known are {', '.join(_S3_OPTIONS)}")
    endpoint = given.get("endpoint_override", "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    region = given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    region = region or ("us-east-1" if endpoint else "")
    return {name: value for name, value in (("endpoint", endpoint), ("region", region)) if value}


def _s3_filesystem(bucket: str, options: Mapping[str, str]) -> "pafs.S3FileSystem":
    import pyarrow.fs as pafs

    scheme, _, host = options.get("endpoint", "").partition("://")
    return pafs.S3FileSystem(
        endpoint_override=host or None,
        scheme=scheme or None,
        region=options.get("region") or pafs.resolve_s3_region(bucket),
        connect_timeout=_CONNECT_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
    )
