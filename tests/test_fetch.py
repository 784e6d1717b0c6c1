from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcontext.data.recipes import transfer
from medcontext.data.recipes.transfer import fetch
from medcontext.errors import MedContextError

CONTENT = np.random.default_rng(0).bytes(1_000_003)
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A server of one file that can be told to misbehave; it counts what it sends."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag: str | None = '"first"'
        self.ranges = True
        self.shift = 0
        """By how many bytes the range that is sent differs from the one that was asked for."""
        self.length = True
        self.cuts: list[int] = []
        """After how many bytes the connection is closed, answer by answer."""
        self.answers: list[int] = []
        """Status codes to answer with first."""
        self.sent = 0
        self.requests: list[str | None] = []
        """The Range of every request."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/set.tar"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append(asked)
        if self.answers:
            handler.send_error(self.answers.pop(0))
            return
        start = 0
        if asked and self.ranges and handler.headers.get("If-Range") == self.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + self.shift
        if start > len(self.content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.length:
            handler.send_header("Content-Length", str(len(self.content) - start))
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        stop = start + self.cuts.pop(0) if self.cuts else len(self.content)
        body = self.content[start:stop]
        # Before the client has it all, and looks.
        self.sent += len(body)
        handler.wfile.write(body)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "WAIT_SECONDS", 0.0)
    started = Server()
    yield started
    started.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_comes_whole_under_its_name_and_only_once(server, tmp_path):
    steps = []
    to = tmp_path / "new" / "set.tar"
    assert (
        fetch(server.url, to, md5=MD5, sha256=SHA256.upper(), size=len(CONTENT), update=lambda *s: steps.append(s))
        == to
    )
    assert to.read_bytes() == CONTENT
    assert names(to.parent) == {"set.tar"}
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    fetch(server.url, to, md5=MD5)
    assert server.sent == len(CONTENT)


def test_a_cut_connection_is_gone_on_with(server, tmp_path):
    server.cuts = [300_000, 1, 400_000]
    fetch(server.url, tmp_path / "set.tar", sha256=SHA256)
    assert (tmp_path / "set.tar").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-", "bytes=300001-", "bytes=700001-"]
    assert server.sent == len(CONTENT)


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 400_000), max_size=12),
    ranges=st.booleans(),
    etag=st.sampled_from(['"a"', 'W/"a"', None]),
)
def test_whatever_the_cuts_the_file_is_right_or_there_is_none(cuts, ranges, etag, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        patch.setattr(transfer, "WAIT_SECONDS", 0.0)
        server = Server()
        server.cuts, server.ranges, server.etag = list(cuts), ranges, etag
        error = None
        try:
            fetch(server.url, folder / "set.tar", md5=MD5)
        except MedContextError as raised:
            error = raised
        finally:
            server.close()
    if error is None:
        assert (folder / "set.tar").read_bytes() == CONTENT
        assert names(folder) == {"set.tar"}
    else:
        assert "broke off" in str(error)
        assert len(cuts) >= transfer.ATTEMPTS
        assert "set.tar" not in names(folder)


def test_a_killed_download_is_gone_on_with_by_the_next_call(server, tmp_path):
    def kill(done: int, total: int) -> None:
        if done >= 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path / "set.tar", md5=MD5, update=kill)
    have = (tmp_path / "set.tar.part").stat().st_size
    assert 500_000 <= have < len(CONTENT)
    assert not (tmp_path / "set.tar").exists()
    fetch(server.url, tmp_path / "set.tar", md5=MD5)
    assert server.requests == [None, f"bytes={have}-"]
    assert (tmp_path / "set.tar").read_bytes() == CONTENT
    assert names(tmp_path) == {"set.tar"}


def break_off(server: Server, to: Path, after: int) -> None:
    """Leave a broken download behind."""
    server.cuts = [after] + [0] * 2 * transfer.ATTEMPTS
    with pytest.raises(MedContextError, match="broke off") as error:
        fetch(server.url, to)
    assert f"of {len(server.content)} bytes" in error.value.found
    assert to.with_name("set.tar.part").stat().st_size == after
    server.cuts, server.requests, server.sent = [], [], 0


def test_attempts_are_bounded_and_what_came_is_kept(server, tmp_path):
    server.cuts = [100_000] + [0] * 100
    with pytest.raises(MedContextError, match="broke off"):
        fetch(server.url, tmp_path / "set.tar")
    assert len(server.requests) == 1 + transfer.ATTEMPTS
    assert (tmp_path / "set.tar.part").stat().st_size == 100_000


def test_a_whole_part_is_not_asked_for_again(server, tmp_path):
    def kill(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path / "set.tar", update=kill)
    fetch(server.url, tmp_path / "set.tar", md5=MD5)
    assert server.sent == len(CONTENT)
    assert len(server.requests) == 1


def test_a_file_that_changed_on_the_server_is_begun_anew(server, tmp_path):
    break_off(server, tmp_path / "set.tar", 400_000)
    server.content = np.random.default_rng(1).bytes(700_000)
    server.etag = '"second"'
    fetch(server.url, tmp_path / "set.tar", md5=hashlib.md5(server.content).hexdigest())
    assert (tmp_path / "set.tar").read_bytes() == server.content
    assert server.requests == ["bytes=400000-"]
    assert server.sent == 700_000


def test_a_file_that_became_shorter_is_begun_anew(server, tmp_path):
    break_off(server, tmp_path / "set.tar", 400_000)
    server.content = b"short"
    fetch(server.url, tmp_path / "set.tar")
    assert (tmp_path / "set.tar").read_bytes() == b"short"


def test_another_range_than_was_asked_for_is_not_appended(server, tmp_path):
    break_off(server, tmp_path / "set.tar", 400_000)
    server.shift = 7
    fetch(server.url, tmp_path / "set.tar")
    assert (tmp_path / "set.tar").read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["no ranges", "weak tag", "no tag", "other address"])
def test_where_it_is_not_sure_to_be_the_same_file_it_is_begun_anew(server, tmp_path, how):
    server.etag = {"weak tag": 'W/"first"', "no tag": None}.get(how, '"first"')
    break_off(server, tmp_path / "set.tar", 0 if how in ("weak tag", "no tag") else 400_000)
    server.ranges = how != "no ranges"
    (tmp_path / "set.tar.part").write_bytes(b"wrong" * 1000) if how != "no ranges" else None
    url = server.url + "?other" if how == "other address" else server.url
    fetch(url, tmp_path / "set.tar", md5=MD5)
    assert (tmp_path / "set.tar").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    for checksum in ({"md5": MD5}, {"sha256": SHA256}):
        with pytest.raises(MedContextError, match="not the one") as error:
            fetch(server.url, tmp_path / "set.tar", **checksum)
        assert next(iter(checksum.values())) in error.value.expected
        assert hashlib.new(next(iter(checksum)), server.content).hexdigest() in error.value.found
        assert names(tmp_path) == set()


def test_another_size_is_refused_before_it_is_downloaded(server, tmp_path):
    with pytest.raises(MedContextError, match="another size") as error:
        fetch(server.url, tmp_path / "set.tar", size=5)
    assert "1000003 bytes" in error.value.found
    server.length = False
    with pytest.raises(MedContextError, match="not the one"):
        fetch(server.url, tmp_path / "set.tar", size=5)
    assert names(tmp_path) == set()


def test_a_file_that_is_there_is_not_written_over(server, tmp_path):
    (tmp_path / "set.tar").write_bytes(b"mine")
    with pytest.raises(MedContextError, match="not the one") as error:
        fetch(server.url, tmp_path / "set.tar", md5=MD5)
    assert "not written over" in error.value.remedy
    assert (tmp_path / "set.tar").read_bytes() == b"mine"
    assert server.requests == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_server_that_says_no_is_asked_once(server, tmp_path, status):
    server.answers = [status]
    with pytest.raises(MedContextError, match="does not give this file") as error:
        fetch(server.url, tmp_path / "set.tar")
    assert str(status) in error.value.found
    assert error.value.file == server.url
    assert len(server.requests) == 1
    assert names(tmp_path) == set()


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.answers = [503, 429, 500]
    fetch(server.url, tmp_path / "set.tar", md5=MD5)
    assert len(server.requests) == 4


def test_no_server_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    waited = []
    monkeypatch.setattr(transfer.time, "sleep", waited.append)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with pytest.raises(MedContextError, match="broke off") as error:
            fetch(f"http://127.0.0.1:{reserved.getsockname()[1]}/set.tar", tmp_path / "set.tar")
    assert "refused" in error.value.found
    assert waited == [1.0, 2.0, 4.0, 8.0]
    assert names(tmp_path) == set()


def test_a_full_disk_is_found_before_the_download(server, tmp_path, monkeypatch):
    usage = transfer.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage._replace(free=len(CONTENT) - 1))
    with pytest.raises(MedContextError, match="not enough room"):
        fetch(server.url, tmp_path / "set.tar")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/set.tar", "set.tar"])
def test_only_http_is_downloaded_from(tmp_path, url):
    with pytest.raises(MedContextError, match="can't be downloaded from"):
        fetch(url, tmp_path / "set.tar")
