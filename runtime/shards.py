"""Files inside tar shards in WebDataset's layout, on disk or behind a URL: read by index, each checked by its sha256.

index.json beside the shards says in which of them a file lies, and where. So any file can be read at any moment, and
what a training step holds still depends on nothing but the seed and the step's number. A file from a URL is asked for
by its range of bytes and kept in a local cache.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from edgefuse.runtime.errors import ManifestError, MediaError
from edgefuse.runtime.files import write_atomic

INDEX_FILE = "index.json"
CACHE_VARIABLE = "EDGEFUSE_CACHE"  # the cache's folder, where it is not ~/.cache/edgefuse

WAITS_S = (0.5, 2.0, 8.0)  # before each further try
TIMEOUT_S = 30.0
AT_ONCE = 16  # requests
_PASSING = (408, 429)  # refusals that another try can change; so can all from 500 on
_MEMBER = re.compile(r"(.+\.tar)#(\d+)\+(\d+)-([0-9a-f]{64})")
Count = Annotated[int, Field(ge=0)]


class Member(NamedTuple):
    """Where a file lies."""

    shard: str  # path or URL of the tar
    offset: int  # bytes before its content
    size: int  # bytes
    sha256: str

    def __str__(self) -> str:
        """The name that a manifest line carries in place of a path."""
        return f"{self.shard}#{self.offset}+{self.size}-{self.sha256}"


class Index(BaseModel):
    """What index.json holds."""

    version: Literal[1] = 1
    shards: list[Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.tar$")]]  # names, in the index's own folder
    # Of each file: number of its shard, offset, size, sha256.
    files: list[tuple[Count, Count, Count, str]]
    lines: list[dict[str, Count | str]]  # as in a manifest, with numbers of `files` in place of paths


def is_url(path: str) -> bool:
    """Whether a path lies behind HTTP."""
    return path.startswith(("http://", "https://"))


def is_index(path: str | Path) -> bool:
    """Whether a manifest is an index of shards."""
    return str(path).endswith(".json")


def member(path: str) -> Member | None:
    """What a manifest line's path says of a shard; None where it is the path of a file."""
    found = _MEMBER.fullmatch(path) if ".tar#" in path else None
    return found and Member(found[1], int(found[2]), int(found[3]), found[4])


def index_lines(path: str | Path) -> list[str]:
    """The manifest lines of an index, with a `Member` as text in place of every path.

    Raises:
        ManifestError: it cannot be read, or is no index.
    """
    path = re.sub(r"^(https?):/+", r"\1://", str(path))  # a Path folds the slashes of a URL
    try:
        content = _fetch(path) if is_url(path) else Path(path).read_bytes()
        index = Index.model_validate_json(content)
        folder = path[: -len(path.rpartition("/")[2])]
        files = [str(Member(folder + index.shards[n], at, size, digest)) for n, at, size, digest in index.files]
        rows = ({key: files[v] if isinstance(v, int) else v for key, v in line.items()} for line in index.lines)
        return [json.dumps(row) for row in rows]
    except (OSError, MediaError) as error:
        raise ManifestError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except (ValidationError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ManifestError(f"{path}: no index of shards ({reason}); make it by `edgefuse data shard`") from None


def read_member(file: Member) -> bytes:
    """The content of a file in a shard.

    Raises:
        MediaError: the shard is missing, cut off or altered, or its server does not answer.
    """
    if not is_url(file.shard):
        return _checked(file, _read(file))
    path = _cached(file)
    if path.exists() and _is_whole(file, kept := path.read_bytes()):
        return kept
    data = _checked(file, _fetch(file.shard, file))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return data


def prefetch(paths: Iterable[str]) -> None:
    """Bring the files that are behind a URL into the cache, several at once.

    Raises:
        MediaError: as `read_member`.
    """
    wanted = [file for path in paths if (file := member(path)) and is_url(file.shard) and not _cached(file).exists()]
    if wanted:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(read_member, wanted))


def _cached(file: Member) -> Path:
    folder = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "edgefuse"
    return Path(folder) / "shards" / file.sha256[:2] / file.sha256


def _read(file: Member) -> bytes:
    try:
        with Path(file.shard).open("rb") as shard:
            shard.seek(file.offset)
            return shard.read(file.size)
    except OSError as error:
        raise MediaError(f"{file.shard}: {error.strerror}; index.json beside it needs this shard") from None


def _is_whole(file: Member, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == file.sha256


def _checked(file: Member, data: bytes) -> bytes:
    if _is_whole(file, data):
        return data
    if len(data) < file.size:
        raise MediaError(f"{file.shard}: the shard is cut off at byte {file.offset + len(data)}; copy it again")
    raise MediaError(f"{file.shard}: altered at byte {file.offset}: index.json has another sha256; copy it again")


def _fetch(url: str, file: Member | None = None) -> bytes:
    """What a URL gives, or only the bytes of `file` in it; failures that can pass are tried again."""
    asked = {"Range": f"bytes={file.offset}-{file.offset + file.size - 1}"} if file else {}
    for wait_s in (*WAITS_S, None):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=TIMEOUT_S) as answer:
                if file and answer.status != http.client.PARTIAL_CONTENT:
                    raise MediaError(f"{url}: the server gives whole files only; it must answer requests for a range")
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise MediaError(f"{url}: the shard is cut off; copy it again") from None
            if error.code < 500 and error.code not in _PASSING:
                break
        except (OSError, http.client.HTTPException) as error:  # no answer, or one that breaks off
            reason = str(error) or type(error).__name__
        if wait_s is not None:
            time.sleep(wait_s)
    raise MediaError(f"{url}: the server does not give it ({reason}); check the address")
