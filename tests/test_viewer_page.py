"""The viewer's page and its server: nothing leaves or enters but what is meant to; and the command."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import html.parser
import http.client
import http.server
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from medcontext.errors import MedContextError
from medcontext.viewer import niivue
from medcontext.viewer.html import served_page, single_file
from medcontext.viewer.names import Names
from medcontext.viewer.scene import make_scene
from medcontext.viewer.server import Server
from medcontext.viewer.view import viewer_server, write_view
from tests.conftest import write_nifti
from tests.test_cli import run

EVIL = '</script><img src=x onerror="alert(1)">&amp;'
SCRIPT = "var niivue = {}; // </script> https://example.org\n"


@pytest.fixture
def own_niivue(tmp_path, monkeypatch) -> Path:
    """A stand-in for NiiVue, so that these tests need no build."""
    file = tmp_path / "vendor" / "niivue.js"
    file.parent.mkdir()
    file.write_text(SCRIPT)
    monkeypatch.setattr(niivue, "FILE", file)
    return file


@pytest.fixture
def scene(tmp_path):
    scan = write_nifti(tmp_path / "a<b>&'c.nii.gz", np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4))
    labels = write_nifti(tmp_path / "labels.nii.gz", np.eye(5, 4, dtype=np.uint8)[..., None].repeat(3, 2), np.eye(4))
    return make_scene(scan, [labels], labels, Names({1: EVIL}), 10**6)


class Parsed(html.parser.HTMLParser):
    """Elements of a page in order, with attributes and the text directly inside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2].append(data)

    def about(self):
        return json.loads("".join(next(text for _, attrs, text in self.elements if attrs.get("id") == "about")))


def test_names_are_text_and_never_markup(scene, own_niivue):
    for page in (served_page(scene)[0].decode(), "".join(single_file(scene, own_niivue))):
        parsed = Parsed(page)
        assert EVIL not in page
        assert not any(tag == "img" or "onerror" in attrs for tag, attrs, _ in parsed.elements)
        assert parsed.about()["labels"][0]["name"] == EVIL
        assert "".join(next(text for tag, _, text in parsed.elements if tag == "title")).strip() == "a<b>&'c"


def test_one_file_holds_everything_and_reaches_nothing(scene, own_niivue, tmp_path):
    write_view(scene, tmp_path / "view.html")
    page = (tmp_path / "view.html").read_text()
    parsed = Parsed(page)
    for tag, attrs, _ in parsed.elements:
        assert not (set(attrs) & {"src", "srcset", "action", "formaction", "ping"}), tag
        assert tag != "link" or attrs["href"] == "data:,"
    policy = next(attrs["content"] for tag, attrs, _ in parsed.elements if tag == "meta" and "http-equiv" in attrs)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "*" not in policy
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    own = [attrs for tag, attrs, _ in parsed.elements if tag in ("script", "style") and "data-file" not in attrs]
    assert len(own) == 4
    assert all(attrs["nonce"] == nonce for attrs in own)
    assert not re.search(r"@import|url\(", page)
    script = next(text for tag, _, text in parsed.elements if tag == "script" and "var niivue" in "".join(text))
    assert "".join(script).strip() == SCRIPT.replace("</script", "<\\/script").strip()
    assert niivue.NOTICES.read_text().splitlines()[2] in page
    inside = {
        attrs["data-file"]: text for tag, attrs, text in parsed.elements if tag == "script" and "data-file" in attrs
    }
    assert set(inside) == set(scene.files)
    for name, text in inside.items():
        assert gzip.decompress(base64.b64decode("".join(text).strip())) == b"".join(scene.files[name])


def test_a_page_needs_the_ending_of_one(scene, own_niivue, tmp_path):
    with pytest.raises(MedContextError, match="written as a page"):
        write_view(scene, tmp_path / "view.nii.gz")
    assert not (tmp_path / "view.nii.gz").exists()


@pytest.fixture
def served(scene, own_niivue) -> Iterator[Server]:
    with viewer_server(scene) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: Server, path: str, method: str = "GET", host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(*server.server_address)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
    connection.endheaders()
    response = connection.getresponse()
    response.content = response.read()
    connection.close()
    return response


def test_the_named_resources_are_served(served, scene):
    base = urlsplit(served.address).path
    page = ask(served, base)
    assert page.status == 200
    assert Parsed(page.content.decode()).about() == scene.about
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert ask(served, base + "niivue.js").content.decode() == SCRIPT
    for name, parts in scene.files.items():
        assert ask(served, base + name).content == b"".join(parts)
        head = ask(served, base + name, "HEAD")
        assert (head.status, head.content) == (200, b"")
        assert int(head.headers["Content-Length"]) == sum(map(len, parts))
    assert ask(served, base, host=f"localhost:{served.server_address[1]}").status == 200


def test_nothing_else_is_served(served):
    token = urlsplit(served.address).path.strip("/")
    assert len(token) >= 32
    stray = [
        "/",
        "/scan.nii",
        "/niivue.js",
        f"/{token}",
        f"/{token[:-1]}/scan.nii",
        f"/{token}/../{token}/scan.nii",
        f"/{token}/%73can.nii",
        f"/{token}/../../../../etc/passwd",
        f"/{token}/..%2f..%2fetc%2fpasswd",
        f"/{token}//etc/passwd",
        f"/{token}/scan.nii?x",
        f"/{token}/page.html",
        f"http://127.0.0.1/{token}/",
    ]
    for path in stray:
        assert ask(served, path).status == 404, path
    for host in ("evil.example", "evil.example:80", "127.0.0.1", "[::1]"):
        assert ask(served, f"/{token}/", host=host).status == 404, host
    assert ask(served, f"/{token}/", "POST").status == 501


def test_it_listens_on_this_machine_alone_and_each_time_at_another_address(served, scene):
    assert served.server_address[0] == "127.0.0.1"
    with viewer_server(scene) as other:
        assert urlsplit(other.address).path != urlsplit(served.address).path


def test_the_command_writes_a_file(tiny, own_niivue, tmp_path, capsys):
    scan, truth = tiny / "imagesTr" / "case_01.nii.gz", tiny / "labelsTr" / "case_01.nii.gz"
    assert run("view", scan, truth, "--truth", truth, "--out", tmp_path / "view.html") == 0
    assert "view.html" in capsys.readouterr().out
    about = Parsed((tmp_path / "view.html").read_text()).about()
    assert [label["name"] for label in about["labels"]] == ["low", "high"]
    assert [each["title"] for each in about["maps"]] == ["Truth", "Prediction"]
    assert run("view", scan, tiny / "labelsTr" / "case_02.nii.gz", "--out", tmp_path / "no.html") == 1
    assert "another grid" in capsys.readouterr().err
    assert not (tmp_path / "no.html").exists()
    assert run("view", scan, "--out", tmp_path / "a.html", truth) == 2
    assert "come after an option" in capsys.readouterr().err


def test_a_large_scan_is_said_to_be_shown_in_part(tiny, own_niivue, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("medcontext.viewer.view.FILE_VOXELS", 1000)
    assert run("view", tiny / "imagesTr" / "case_01.nii.gz", "--out", tmp_path / "view.html") == 0
    said = capsys.readouterr().err
    assert re.search(r"\d+ x \d+ x \d+ voxels are too many: \d+ x \d+ x \d+ of them are shown", said)
    assert Parsed((tmp_path / "view.html").read_text()).about()["step"] != [1, 1, 1]


def test_the_command_serves_until_it_is_interrupted(tiny, tmp_path):
    if not niivue.FILE.is_file():
        pytest.skip("NiiVue is not in this installation; 'make install' with a network brings it")
    command = [sys.executable, "-m", "medcontext", "view", str(tiny / "imagesTr" / "case_01.nii.gz"), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip())
        # It waits for no browser, which would keep its connection open until its window is closed.
        with contextlib.closing(http.client.HTTPConnection(address.hostname, address.port)) as connection:
            connection.request("GET", address.path)
            assert b"case_01" in connection.getresponse().read()
            assert connection.sock is not None
            process.send_signal(2)
            assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_without_niivue_the_command_says_how_to_get_it(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(niivue, "FILE", tmp_path / "absent.js")
    assert run("view", tiny / "imagesTr" / "case_01.nii.gz") == 1
    assert "-m medcontext.viewer.niivue" in capsys.readouterr().err


@pytest.fixture
def registry(monkeypatch) -> Iterator[tuple[dict[str, bytes], list[str]]]:
    """A registry on this machine, which is used where there is no npm: what it serves, and what was asked for."""
    content: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path in content else 404)
            self.end_headers()
            self.wfile.write(content.get(self.path, b""))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_address[1]}/")
        monkeypatch.setattr("shutil.which", lambda _: None)
        yield content, asked
        server.shutdown()


def archive_of(script: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in (niivue.MEMBER, "../outside.js"):
            member = tarfile.TarInfo(name)
            member.size = len(script)
            archive.addfile(member, io.BytesIO(script))
    return stream.getvalue()


def test_niivue_is_fetched_once_it_is_the_pinned_one(registry, tmp_path, monkeypatch):
    content, asked = registry
    monkeypatch.setattr(niivue, "FILE", tmp_path / "package" / "niivue.js")
    address = f"/@niivue/niivue/-/niivue-{niivue.VERSION}.tgz"
    content[address] = archive = archive_of(b"the script")
    with pytest.raises(MedContextError, match="another archive"):
        niivue.fetch()
    assert not niivue.FILE.exists()
    monkeypatch.setattr(niivue, "SHA512", base64.b64encode(hashlib.sha512(archive).digest()).decode())
    assert niivue.fetch().read_bytes() == b"the script"
    assert asked == [address] * 2
    assert [path.name for path in tmp_path.rglob("*.js")] == ["niivue.js"]
    content.clear()
    with pytest.raises(MedContextError, match="could not be fetched"):
        niivue.fetch()
    assert niivue.require().read_bytes() == b"the script"
