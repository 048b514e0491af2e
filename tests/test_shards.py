"""Files in shards: read by index from disk or by ranges of a URL, tried again, kept, and never altered unseen."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime import shards as module
from edgefuse.runtime.errors import ManifestError, MediaError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.media import read_media
from edgefuse.runtime.shards import CACHE_VARIABLE, INDEX_FILE, Member, index_lines, member, prefetch, read_member

CONTENT = {"a.png": b"picture" * 100, "b.wav": b"sound" * 300}


class Server(ThreadingHTTPServer):
    """Serves a folder by ranges of bytes, as object storage does, and fails as often as it is told."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.refusals: list[int] = []  # HTTP codes of the next answers
        self.cuts = 0  # next answers that break off
        self.ranges = True
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.refusals:
            self.send_error(self.server.refusals.pop(0))
            return
        data = (self.server.folder / self.path[1:]).read_bytes()
        wanted = self.headers.get("Range", "")
        partial = wanted.startswith("bytes=") and self.server.ranges
        if partial:
            start, end = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
            if start >= len(data):
                self.send_error(416)
                return
            data = data[start : end + 1]
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            data = data[: len(data) // 2]
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shard of two files, made by Python's own tarfile, and its index."""
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        for name, data in CONTENT.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        places = [(0, info.offset_data, info.size) for info in tar.getmembers()]
    files = [[*p, hashlib.sha256(data).hexdigest()] for p, data in zip(places, CONTENT.values(), strict=True)]
    lines = [{"image": 0, "audio": 1, "text": "7", "label": "x"}, {"audio": 1, "label": "y", "split": "val"}]
    write_index(tmp_path, files=files, lines=lines)
    return tmp_path


@pytest.fixture
def server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The folder behind a URL, and no patience."""
    monkeypatch.setattr(module, "WAITS_S", (0.0, 0.0))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def write_index(folder: Path, **changes: Any) -> None:
    index = {"version": 1, "shards": ["train-000000.tar"], "files": [], "lines": []}
    (folder / INDEX_FILE).write_text(json.dumps({**index, **changes}))


def test_lines_of_an_index_are_those_of_a_manifest_whose_files_are_inside_shards(folder: Path) -> None:
    one, two = read_manifest(folder / INDEX_FILE)
    assert (one.text, one.label, one.split, two.label, two.split) == ("7", "x", "train", "y", "val")
    assert one.where == f"{folder / INDEX_FILE}:1"
    assert one.audio == two.audio
    assert (read_media(str(one.image)), read_media(str(one.audio))) == tuple(CONTENT.values())


def test_a_file_behind_a_url_is_asked_for_once_and_then_kept(server: Server) -> None:
    line = read_manifest(f"{server.url}/{INDEX_FILE}")[0]
    server.asked.clear()
    for _ in range(3):
        assert read_media(str(line.image)) == CONTENT["a.png"]
    assert server.asked == ["/train-000000.tar"]


def test_a_url_survives_being_a_path(server: Server) -> None:
    assert len(read_manifest(Path(f"{server.url}/{INDEX_FILE}"))) == 2


def test_a_kept_file_that_was_spoiled_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    line = read_manifest(f"{server.url}/{INDEX_FILE}")[0]
    read_media(str(line.image))
    (kept,) = (tmp_path / "cache").rglob("*/" + hashlib.sha256(CONTENT["a.png"]).hexdigest())
    kept.write_bytes(b"spoiled")
    assert read_media(str(line.image)) == CONTENT["a.png"]


def test_many_files_are_brought_at_once(server: Server) -> None:
    line = read_manifest(f"{server.url}/{INDEX_FILE}")[0]
    server.asked.clear()
    for _ in range(2):
        prefetch([str(line.image), str(line.audio), "/no/member.png"])
    assert len(server.asked) == 2


@pytest.mark.parametrize("failure", ["busy", "breaks off"])
def test_a_server_that_fails_for_a_moment_is_asked_again(server: Server, failure: str) -> None:
    line = read_manifest(f"{server.url}/{INDEX_FILE}")[0]
    if failure == "busy":
        server.refusals = [503, 429]
    else:
        server.cuts = 2
    assert read_media(str(line.image)) == CONTENT["a.png"]


@pytest.mark.parametrize(
    ("refusals", "ranges", "asked", "message"),
    [
        ([503] * 3, True, 3, r"the server does not give it \(HTTP 503 Service Unavailable\); check the address"),
        ([404], True, 1, r"the server does not give it \(HTTP 404 Not Found\)"),
        ([], False, 1, "the server gives whole files only; it must answer requests for a range"),
    ],
)
def test_a_server_that_does_not_give_is_named_in_one_line(
    server: Server, refusals: list[int], ranges: bool, asked: int, message: str
) -> None:
    line = read_manifest(f"{server.url}/{INDEX_FILE}")[0]
    server.asked.clear()
    server.refusals, server.ranges = refusals, ranges
    with pytest.raises(MediaError, match=message) as caught:
        read_media(str(line.image))
    assert "\n" not in str(caught.value)
    assert len(server.asked) == asked


def test_a_server_that_is_not_there_is_named_in_one_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ManifestError, match=r"http://127\.0\.0\.1:1/index\.json: cannot be read .* does not give it"):
        read_manifest("http://127.0.0.1:1/index.json")


@pytest.mark.parametrize("place", ["disk", "url"])
def test_a_shard_that_is_cut_off_or_altered_is_refused_in_one_line(server: Server, folder: Path, place: str) -> None:
    index = str(folder / INDEX_FILE) if place == "disk" else f"{server.url}/{INDEX_FILE}"
    line, shard = read_manifest(index)[0], folder / "train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:600] + b"!" + whole[601:])
    with pytest.raises(MediaError, match=r"train-000000\.tar: altered at byte 512: index\.json has another sha256"):
        read_media(str(line.image))
    for length, message in ((1000, "cut off at byte 1000; copy it again"), (100, "the shard is cut off")):
        shard.write_bytes(whole[:length])
        with pytest.raises(MediaError, match=rf"train-000000\.tar: .*{message}") as caught:
            read_media(str(line.image))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_a_missing_shard_is_refused_in_one_line(folder: Path) -> None:
    line = read_manifest(folder / INDEX_FILE)[0]
    (folder / "train-000000.tar").unlink()
    with pytest.raises(MediaError, match=r"train-000000\.tar: No such file or directory; index\.json beside it needs"):
        read_media(str(line.image))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"shards": ["../train.tar"]},
        {"shards": ["/etc/train.tar"]},
        {"files": [[0, -1, 5, "00"]]},
        {"files": [[7, 0, 5, "00"]]},
        {"lines": [{"image": 3}]},
        {"lines": 5},
    ],
)
def test_what_is_no_index_is_refused_in_one_line(folder: Path, changes: dict[str, Any]) -> None:
    write_index(folder, **changes)
    with pytest.raises(ManifestError, match=r"no index of shards .*; make it by `edgefuse data shard`") as caught:
        read_manifest(folder / INDEX_FILE)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=100))
def test_any_bytes_are_an_index_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / INDEX_FILE
    path.write_bytes(content)
    with pytest.raises(ManifestError, match="no index of shards"):
        index_lines(path)


@given(st.text(st.characters(exclude_characters="\n"), min_size=1), st.integers(0), st.integers(0))
def test_a_member_is_read_back_from_its_text(shard: str, offset: int, size: int) -> None:
    file = Member(f"{shard}.tar", offset, size, "0" * 64)
    assert member(str(file)) == file


@pytest.mark.parametrize("path", ["a.png", "a.tar", "a.tar#b.png", "a.tar#1+2-zz"])
def test_other_paths_are_no_members(path: str) -> None:
    assert member(path) is None


def test_what_is_read_is_checked(folder: Path) -> None:
    line = member(str(read_manifest(folder / INDEX_FILE)[0].image))
    assert line is not None
    with pytest.raises(MediaError, match="another sha256"):
        read_member(line._replace(sha256="0" * 64))
