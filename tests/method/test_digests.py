import json
import os
from hashlib import sha256

import pytest

from pusa import digests
from pusa.digests import describe_file, digest_file, digest_files, digest_folder, remember_digest


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file that counts as large, beside an empty cache folder of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 4)
    (tmp_path / "weights").write_bytes(b"abcdef")
    return tmp_path / "weights"


@pytest.fixture
def reads(monkeypatch):
    """Large files that were read, one after the other."""
    read, found = digests._read_large, []
    monkeypatch.setattr(
        digests, "_read_large", lambda path: (found.append(path.name), read(path))[1]
    )
    return found


def plain(content):
    return sha256(content).hexdigest()


@pytest.mark.parametrize("large", [4, 100])
def test_it_is_the_contents_sha256(file, monkeypatch, large):
    monkeypatch.setattr(digests, "LARGE", large)
    assert digest_file(file) == plain(b"abcdef")
    assert describe_file(file) == {"size": 6, "sha256": plain(b"abcdef")}


def test_a_large_file_is_read_once(file, reads, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    assert {digest_file(file), digest_file(str(file)), digest_file(link)} == {plain(b"abcdef")}
    assert reads == ["weights"]


def test_an_edited_file_is_read_again_though_its_time_was_set_back(file, reads):
    digest_file(file)
    before = file.stat()
    with file.open("r+b") as content:  # the same inode and size
        content.write(b"ABC")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest_file(file) == plain(b"ABCdef")
    assert reads == ["weights", "weights"]


def test_another_file_in_its_place(file, reads, tmp_path):
    digest_file(file)
    (tmp_path / "other").write_bytes(b"ghijkl")
    os.utime(tmp_path / "other", ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(tmp_path / "other", file)
    assert digest_file(file) == plain(b"ghijkl")


def test_what_was_verified_elsewhere_is_not_read(file, reads):
    remember_digest(file, "of the hub")
    assert digest_file(file) == "of the hub" and not reads


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"state": 1}'])
def test_a_damaged_note_is_not_believed(file, reads, note):
    digest_file(file)
    [remembered] = digests._note_of(file.resolve()).parent.iterdir()
    assert json.loads(remembered.read_text())["file"] == str(file.resolve())
    remembered.write_text(note)
    assert digest_file(file) == plain(b"abcdef")
    assert len(reads) == 2


def test_a_home_that_cannot_be_written(file, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert digest_file(file) == plain(b"abcdef")


def test_files_and_folders(tmp_path):
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub").mkdir()
    both = digest_files([tmp_path / "b", tmp_path / "a"])
    assert digest_folder(tmp_path) == both == digest_files([tmp_path / "a", tmp_path / "b"])
    os.replace(tmp_path / "b", tmp_path / "c")  # the same content under another name
    assert digest_folder(tmp_path) != both
