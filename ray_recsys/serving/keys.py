"""API keys and their scopes. The file holds digests, so that reading it does not reveal keys.

    # name  sha256 of the key                                                 scopes
    shop    2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b  recommend
    ops     …                                                                 recommend,browse,admin

Make a line with `printf %s "$KEY" | sha256sum`.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ray_recsys.errors import InputError

VARIABLE = "RAY_RECSYS_API_KEYS_FILE"
Scope = Literal["recommend", "browse", "admin"]
"""recommend: recommendations, scores and items; browse: the page, users and histories; admin: metrics and lists."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(slots=True)
class ApiKey:
    """A caller; the bucket is refilled at the rate limit."""

    name: str
    digest: bytes
    scopes: frozenset[str]
    tokens: float = field(default=1.0, compare=False)
    filled_at_s: float = field(default=0.0, compare=False)

    def take(self, rate_per_s: float, now_s: float) -> bool:
        """Takes a token; False: the key has called more often than its rate, over about a second."""
        burst = max(1.0, rate_per_s)
        self.tokens = min(burst, self.tokens + (now_s - self.filled_at_s) * rate_per_s)
        self.filled_at_s = now_s
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def find_key(keys: Sequence[ApiKey], authorization: str) -> ApiKey | None:
    """Returns the key of an Authorization header: `Bearer KEY`, or `Basic` with the key as password (for browsers).

    Compares with every key in constant time.
    """
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            secret = base64.b64decode(secret, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    elif scheme.lower() != "bearer":
        return None
    digest, found = hashlib.sha256(secret.strip().encode()).digest(), None
    for key in keys:
        if hmac.compare_digest(digest, key.digest):
            found = key
    return found


def read_keys(path: Path) -> list[ApiKey]:
    """Returns the keys of a file.

    Raises:
        InputError: It cannot be read, has no key, or a line is wrong; names the line, never its digest.
    """
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{VARIABLE}: {path} cannot be read ({error})") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        parts = line.split("#", 1)[0].split()
        if not parts:
            continue
        scopes = frozenset(parts[2].split(",")) if len(parts) == 3 else frozenset[str]()
        if not scopes or scopes - set(get_args(Scope)) or not _DIGEST.fullmatch(parts[1]):
            raise InputError(
                f"{path}, line {number}: not `NAME SHA256 SCOPES`, with scopes of {', '.join(get_args(Scope))}"
            )
        keys.append(ApiKey(parts[0], bytes.fromhex(parts[1]), scopes))
    if not keys:
        raise InputError(f"{path} has no key", remedy=f"add one, or unset {VARIABLE}")
    return keys


def keys_of_environment() -> list[ApiKey] | None:
    """Returns the keys of the file that RAY_RECSYS_API_KEYS_FILE names; None: it is not set."""
    path = os.environ.get(VARIABLE)
    return read_keys(Path(path)) if path else None


def is_loopback(host: str) -> bool:
    """Returns whether an address is reachable from this machine alone."""
    return host in _LOOPBACK or host.startswith("127.")


def check_exposure(host: str, *, allow_open: bool) -> None:
    """Refuses to listen to other machines without keys.

    Raises:
        InputError: The host is no loopback address, there are no keys, and it is not forced.
    """
    if not is_loopback(host) and keys_of_environment() is None and not allow_open:
        raise InputError(
            f"serve.host = {host}: anyone who reaches this address could call the service",
            remedy=f"set {VARIABLE} (see docs/serving.md), or force it with serve.allow_open=true",
        )
