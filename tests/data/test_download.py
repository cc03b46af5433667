"""Fetching files from a server that stalls, truncates, redirects and changes its mind."""

import fcntl
import hashlib
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from server import serving

from dtune.data import download as module
from dtune.data.download import Patience, download
from dtune.errors import DataError

CONTENT = bytes(range(256)) * 2000
QUICK = Patience(timeout=0.3, tries=3, pause=0.01, least=4096)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "data.hdf5"


def left(path: Path) -> set[str]:
    return {found.name for found in path.parent.iterdir()}


def test_a_file_arrives_and_nothing_else_is_left(path):
    told = []
    with serving(CONTENT) as server:
        download(server.address, path, progress=lambda here, whole: told.append((here, whole)))
    assert path.read_bytes() == CONTENT
    assert left(path) == {"data.hdf5"}
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(told) == told
    assert server.asked[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("mood", ["truncate:100000", "stall:100000"])
def test_what_breaks_off_is_gone_on_with(path, mood):
    with serving(CONTENT, mood, mood) as server:
        download(server.address, path, patience=QUICK)
    assert path.read_bytes() == CONTENT
    assert [headers.get("Range") for headers in server.asked] == [None, "bytes=100000-", "bytes=200000-"]
    assert server.asked[1]["If-Range"] == '"one"'
    assert left(path) == {"data.hdf5"}


def test_a_server_that_drips_is_asked_again(path):
    with serving(CONTENT, "drip") as server:
        began = time.monotonic()
        download(server.address, path, patience=QUICK)
    assert time.monotonic() - began < 3
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_another_call_goes_on_where_one_broke_off(path):
    with serving(CONTENT, "truncate:1000", *["refuse:503"] * 9) as server:
        with pytest.raises(DataError, match=r"cannot be fetched .*503.*1,000 bytes are kept in .*data\.hdf5\.part"):
            download(server.address, path, patience=QUICK)
        assert not path.exists()
        assert path.with_name("data.hdf5.part").read_bytes() == CONTENT[:1000]
        server.moods.clear()
        download(server.address, path, patience=QUICK)
    assert server.asked[-1]["Range"] == "bytes=1000-"
    assert path.read_bytes() == CONTENT
    assert left(path) == {"data.hdf5"}


def test_tries_are_counted_from_the_last_that_brought_something(path):
    moods = ["truncate:10", "refuse:500", "refuse:502"] * 3
    with serving(CONTENT, *moods) as server:
        download(server.address, path, patience=QUICK)
    assert len(server.asked) == 10
    assert path.read_bytes() == CONTENT


def test_pauses_grow(path, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    with serving(CONTENT, *["refuse:503"] * 9) as server, pytest.raises(DataError):
        download(server.address, path, patience=Patience(tries=4, pause=0.5))
    assert pauses == [0.5, 1.0, 2.0]
    assert len(server.asked) == 4


def test_a_server_without_ranges_begins_again(path):
    with serving(CONTENT, "truncate:1000", "whole") as server:
        download(server.address, path, patience=QUICK)
    assert server.asked[1]["Range"] == "bytes=1000-"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("moods", [["truncate:1000", "change"], ["truncate:1000", "change", "truncate:70000"]])
def test_a_file_that_changed_is_begun_again(path, moods):
    with serving(CONTENT, *moods) as server:
        download(server.address, path, patience=QUICK)
    assert path.read_bytes() == server.content == CONTENT[::-1]


def test_a_change_is_noticed_when_the_server_does_not_look_at_if_range(path):
    with serving(CONTENT, "truncate:1000", "stubborn") as server:

        def change(here: int, whole: int | None) -> None:
            if here == 1000:
                server.content, server.tag = CONTENT[::-1], '"two"'

        download(server.address, path, patience=QUICK, progress=change)
    assert len(server.asked) == 3
    assert path.read_bytes() == CONTENT[::-1]


def test_the_date_of_a_file_is_a_version_too(path):
    with serving(CONTENT, "truncate:1000", tag=None, date="Fri, 20 Nov 2026 20:00:00 GMT") as server:
        download(server.address, path, patience=QUICK)
    assert server.asked[1]["If-Range"] == "Fri, 20 Nov 2026 20:00:00 GMT"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_version_nothing_is_gone_on_with(path, tag):
    with serving(CONTENT, "truncate:1000", tag=tag) as server:
        download(server.address, path, patience=QUICK)
    assert "Range" not in server.asked[1]
    assert path.read_bytes() == CONTENT


def test_the_wrong_part_is_not_put_in_place(path):
    with serving(CONTENT, "truncate:1000", "misplace:7") as server:
        download(server.address, path, patience=QUICK)
    assert path.read_bytes() == CONTENT


def test_a_file_that_was_whole_already_is_only_given_its_name(path):
    path.parent.mkdir()
    path.with_name("data.hdf5.part").write_bytes(CONTENT)
    path.with_name("data.hdf5.part.json").write_text('{"version": "\\"one\\""}')
    with serving(CONTENT) as server:
        download(server.address, path, patience=QUICK)
    assert len(server.asked) == 1
    assert path.read_bytes() == CONTENT


def test_a_file_that_became_shorter_is_begun_again(path):
    path.parent.mkdir()
    path.with_name("data.hdf5.part").write_bytes(CONTENT + b"more")
    path.with_name("data.hdf5.part.json").write_text('{"version": "\\"one\\""}')
    with serving(CONTENT) as server:
        download(server.address, path, patience=QUICK)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", b"\xff"])
def test_a_damaged_note_begins_again(path, note):
    path.parent.mkdir()
    path.with_name("data.hdf5.part").write_bytes(b"other")
    path.with_name("data.hdf5.part.json").write_bytes(note)
    with serving(CONTENT) as server:
        download(server.address, path, patience=QUICK)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("mood", ["sizeless", "lie:" + 5000 * "9", "lie:none"])
def test_a_server_that_does_not_say_the_size_is_believed(path, mood):
    told = []
    with serving(CONTENT, mood) as server:
        download(server.address, path, patience=QUICK, progress=lambda here, whole: told.append(whole))
    assert path.read_bytes() == CONTENT
    assert set(told) == {None}


# Redirections


def test_redirections_are_followed(path):
    with serving(CONTENT) as there, serving(CONTENT, f"redirect:{there.address}") as here:
        download(here.address, path, patience=QUICK)
    assert path.read_bytes() == CONTENT
    assert len(there.asked) == 1


def test_a_circle_of_redirections_ends(path):
    with serving(CONTENT, *["redirect"] * 50) as server, pytest.raises(DataError, match=r"302.*loop"):
        download(server.address, path, patience=QUICK)
    assert len(server.asked) <= 11


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_redirections_lead_only_to_http(path, target):
    with serving(CONTENT, f"redirect:{target}") as server, pytest.raises(DataError):
        download(server.address, path, patience=QUICK)
    assert not path.exists()


@pytest.mark.parametrize("target", ["http://[bad", "http://é/", "http://.x/", "http://x:y/"])
def test_redirections_to_no_address_are_not_asked_again(path, target):
    with serving(CONTENT, *[f"redirect:{target}"] * 9) as server:
        with pytest.raises(DataError, match=r"data\.hdf5' is, or leads on to, no address that can be asked \("):
            download(server.address, path, patience=QUICK)
        assert len(server.asked) == 1


def test_what_is_no_address_is_said(path):
    with pytest.raises(DataError, match=r"'http://\[bad' is, or leads on to, no address .*Invalid IPv6"):
        download("http://[bad", path)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "/etc/passwd", "ftp://127.0.0.1/x", ""])
def test_only_http_is_asked(path, address):
    with pytest.raises(DataError, match="has to begin with http"):
        download(address, path)


# Refusals


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_not_asked_again(path, code):
    with serving(CONTENT, f"refuse:{code}") as server:
        with pytest.raises(DataError, match=rf"data\.hdf5 is refused by the server \({code}"):
            download(server.address, path, patience=QUICK)
        assert len(server.asked) == 1
    assert not path.exists()


def test_a_network_that_is_not_there_is_asked_twice(path, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/data.hdf5"
    with pytest.raises(DataError, match=r"cannot be fetched .*refused"):
        download(address, path)
    assert len(pauses) == 1


def test_an_error_page_is_not_taken_for_the_file(path):
    refused = pytest.raises(DataError, match=r"not the file that was meant .*<htm")
    with serving(b"<html>Please log in</html>") as server, refused:
        download(server.address, path, signature=b"\x89HDF", patience=QUICK)
    assert left(path) == set()


def test_the_hash_is_compared(path):
    with serving(CONTENT) as server:
        with pytest.raises(DataError, match="SHA-256"):
            download(server.address, path, sha256=hashlib.sha256(b"other").hexdigest(), patience=QUICK)
        assert left(path) == set()
        download(server.address, path, sha256=hashlib.sha256(CONTENT).hexdigest(), patience=QUICK)
    assert path.read_bytes() == CONTENT


def test_a_file_that_is_there_stays_until_the_new_one_is_whole(path):
    path.parent.mkdir()
    path.write_bytes(b"old")
    with serving(CONTENT, "truncate:10", *["refuse:503"] * 9) as server:
        with pytest.raises(DataError):
            download(server.address, path, patience=QUICK)
        assert path.read_bytes() == b"old"
        server.moods.clear()
        download(server.address, path, patience=QUICK)
    assert path.read_bytes() == CONTENT


def test_a_disk_without_room_is_said_before_anything_is_fetched(path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with serving(CONTENT) as server, pytest.raises(DataError, match=r"needs 512,000 bytes where 1,000 are free"):
        download(server.address, path, patience=QUICK)


def test_two_do_not_fetch_the_same_file(path):
    path.parent.mkdir()
    with path.with_name("data.hdf5.part").open("wb") as other, serving(CONTENT) as server:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="being fetched by another process"):
            download(server.address, path, patience=QUICK)
    assert server.asked == []


@pytest.mark.parametrize("end", ["finished", "given up", "begun again"])
def test_a_file_that_another_has_just_fetched_stays(path, monkeypatch, end):
    """The other is done with it after it is opened here, and before it is locked here."""
    part, lock = path.with_name("data.hdf5.part"), fcntl.flock
    path.parent.mkdir()
    part.write_bytes(CONTENT)

    def finish(file, how):
        part.unlink() if end == "given up" else part.replace(path)
        if end == "begun again":
            part.touch()
        lock(file, how)

    monkeypatch.setattr(module.fcntl, "flock", finish)
    with serving(CONTENT[::-1]) as server:
        with pytest.raises(DataError, match=r"data\.hdf5 has just been fetched by another process, or given up"):
            download(server.address, path, patience=QUICK)
        assert server.asked == []
    assert end == "given up" or path.read_bytes() == CONTENT


def test_the_disk_has_all_of_it_before_it_gets_its_name(path, monkeypatch):
    sync, synced = os.fsync, []

    def look(handle):
        synced.append((path.exists(), os.fstat(handle).st_size))
        sync(handle)

    monkeypatch.setattr(module.os, "fsync", look)
    with serving(CONTENT) as server:
        download(server.address, path)
    assert synced == [(False, len(CONTENT))]
