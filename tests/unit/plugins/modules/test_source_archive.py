# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the source_archive module, with a real web server."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import threading
from types import SimpleNamespace

import pytest
from ansible_collections.tenfold.stack.plugins.modules import source_archive

CONTENT = b"an archive \xff\x00" * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def dest(tmp_path):
    """Where the archive goes. Its folder is not there yet."""
    return tmp_path / "cache/sources/greet.tar.gz"


@pytest.fixture
def fetch(run_module, dest):
    """A function that runs the module. Nothing is left beside the archive."""

    def fetch(*sources, check=False, **options):
        given = {"name": "greet", "sources": list(map(str, sources)), "sha256": SHA256, "dest": str(dest), "timeout": 5}
        result = run_module(source_archive, {**given, **options}, check=check)
        if dest.parent.exists():
            assert [path.name for path in dest.parent.iterdir()] == [dest.name] * dest.exists()
        return result

    return fetch


@pytest.fixture
def mirror(tmp_path):
    """A folder that holds the archive under a name of its own, after another file."""
    folder = tmp_path / "mirror"
    (folder / "folder").mkdir(parents=True)
    (folder / "another").write_bytes(b"another")
    (folder / "whatever.bin").write_bytes(CONTENT)
    return folder


@pytest.fixture
def server(mirror):
    """A web server of the mirror: its url, and the paths it was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/broken":
                self.wfile.write(b"no HTTP\r\n\r\n")
            elif self.path == "/short":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"short")
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(mirror))
    ) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{running.server_address[1]}", asked=asked)
        running.shutdown()


@pytest.mark.parametrize("place", ["", "whatever.bin"])
def test_a_file_or_a_folder_with_any_file_name(fetch, mirror, dest, place):
    result = fetch(mirror / place)
    assert (result["changed"], result["source"]) == (True, str(mirror / place))
    assert dest.read_bytes() == CONTENT


def test_a_file_below_the_home_folder(fetch, mirror, dest, monkeypatch):
    monkeypatch.setenv("HOME", str(mirror))
    assert fetch("~/whatever.bin")["source"] == "~/whatever.bin"
    assert dest.read_bytes() == CONTENT


def test_a_file_url(fetch, mirror, dest):
    assert fetch(f"file://{mirror}/whatever.bin")["changed"] is True
    assert dest.read_bytes() == CONTENT


def test_a_web_server_after_one_that_has_it_not(fetch, server, dest):
    result = fetch(f"{server.url}/gone", f"{server.url}/another", f"{server.url}/whatever.bin", "/never")
    assert (result["changed"], result["source"]) == (True, f"{server.url}/whatever.bin")
    assert server.asked == ["/gone", "/another", "/whatever.bin"]
    assert dest.read_bytes() == CONTENT


def test_what_is_there_already_is_not_fetched(fetch, server, dest):
    fetch(f"{server.url}/whatever.bin")
    server.asked.clear()
    for check in (False, True):
        result = fetch(f"{server.url}/whatever.bin", check=check)
        assert (result["changed"], "source" in result) == (False, False)
    assert server.asked == []


def test_another_file_in_its_place_is_replaced(fetch, mirror, dest):
    dest.parent.mkdir(parents=True)
    dest.write_text("damaged")
    assert fetch(mirror)["changed"] is True
    assert dest.read_bytes() == CONTENT


def test_check_mode_fetches_nothing(fetch, server, dest):
    assert fetch(f"{server.url}/whatever.bin", check=True)["changed"] is True
    assert (server.asked, dest.parent.exists()) == ([], False)


def test_dest_may_have_no_folder(fetch, mirror, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert fetch(mirror, dest="archive")["changed"] is True
    assert (tmp_path / "here/archive").read_bytes() == CONTENT


def test_when_no_place_has_it_each_is_told(fetch, server, mirror, dest, tmp_path):
    (tmp_path / "empty").mkdir()
    (mirror / "whatever.bin").write_bytes(b"changed")
    changed = hashlib.sha256(b"changed").hexdigest()
    places = {
        f"{server.url}/gone": "HTTP Error 404",
        f"{server.url}/whatever.bin": f"its sha256 is {changed}",
        f"{server.url}/short": "",
        f"{server.url}/broken": "",
        server.url.replace("http:", "https:"): "",
        f"file://{tmp_path}/gone": "No such file",
        "gopher://nowhere": "unknown url type",
        str(mirror): "none of its 2 files has the checksum",
        str(mirror / "whatever.bin"): f"its sha256 is {changed}",
        str(tmp_path / "empty"): "there is no such file or folder, or it is empty",
        str(tmp_path / "nowhere"): "there is no such file or folder, or it is empty",
    }
    result = fetch(*places)
    assert result["failed"]
    first, *lines = result["msg"].splitlines()
    assert f"no source of greet gives the archive with sha256 {SHA256}" in first
    assert "greet_sources" in first
    assert "greet_sha256" in first
    assert len(lines) == len(places)
    for line, (place, problem) in zip(lines, places.items(), strict=True):
        assert line.startswith(f"{place}: ")
        assert problem in line[len(place) :], line
    assert not dest.exists()


def test_a_file_that_can_not_be_read_is_told_and_the_next_place_tried(fetch, mirror, tmp_path, monkeypatch):
    locked = mirror / "another"
    read = source_archive.sha256_of

    def refuse(path):
        if path == str(locked):
            raise PermissionError(13, "Permission denied", path)
        return read(path)

    monkeypatch.setattr(source_archive, "sha256_of", refuse)
    assert "Permission denied" in fetch(locked)["msg"]
    assert fetch(locked, mirror / "whatever.bin")["changed"] is True


def test_a_folder_in_place_of_dest_is_told(fetch, mirror, tmp_path):
    (tmp_path / "folder").mkdir()
    result = fetch(mirror, dest=str(tmp_path / "folder"))
    assert result["failed"]
    assert str(tmp_path / "folder") in result["msg"]
    assert os.listdir(tmp_path / "folder") == []
