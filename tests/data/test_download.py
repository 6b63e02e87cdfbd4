"""Downloads with the hub's real client, against a local server."""

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest
from gdown.exceptions import DownloadError

from pusa.data import download as downloads
from pusa.data.download import download_repository
from pusa.data.suite import INFO_FILE
from tests.hub_server import HubServer, Repo

BIG = "transformer/model.safetensors"
#: The client hands on what it received in such pieces; less than one is lost with a connection.
PIECE = 10 * 1024 * 1024
SIZE = PIECE + 2_000_000
INCLUDE = ("*.json", "transformer/*")
OFFLINE = "huggingface_hub.constants.HF_HUB_OFFLINE"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with the model repository ``org/model``, which the client asks."""
    folder = tmp_path / "repo"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "README.md").write_text("A model.")
    (folder / "transformer" / "config.json").write_text('{"dim": 24}')
    (folder / BIG).write_bytes(os.urandom(SIZE))
    (folder / "transformer" / "model.bin").write_bytes(b"pickle")
    with HubServer({"org/model": Repo(folder)}) as server:
        server.point_client(monkeypatch)
        yield server


@pytest.fixture
def folder(hub, tmp_path):
    return tmp_path / "model"


@pytest.fixture
def download(folder):
    """A function that downloads the files of `INCLUDE`."""
    return partial(download_repository, "org/model", folder, kind="model", include=INCLUDE)


@pytest.fixture
def command(hub, tmp_path):
    """A function that gives the arguments of a `subprocess` call of ``pusa download``."""

    def build(*options, repo="org/model", kind="model", url=hub.url):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        words = ["download", repo, tmp_path / "model", "--kind", kind, *options]
        return {
            "args": [sys.executable, "-m", "pusa", *words],
            "env": {**clean, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": url},
        }

    return build


def asked(hub):
    """What was asked of the repository; the client may ask the hub about other things."""
    return [r for r in hub.log if "org/model" in r.path]


def fetched(hub):
    """The names of files whose content was sent."""
    return [r.path.rsplit("/", 1)[1] for r in hub.log if r.sent]


def files_of(folder):
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {name for name in names if not name.startswith(".cache/")}


# What is downloaded, and its record


def test_only_matching_files_of_one_commit(hub, folder, download):
    download()
    repo = hub.repos["org/model"]
    names = {"model_index.json", "transformer/config.json", BIG}
    assert files_of(folder) == names | {"download.json"}
    paths = {r.path for r in hub.log if "/resolve/" in r.path}
    assert paths == {f"/org/model/resolve/{repo.commit}/{name}" for name in names}
    record = json.loads((folder / "download.json").read_text())
    assert record.pop("date") and record == {
        "repo": "org/model",
        "kind": "model",
        "revision": "main",
        "include": list(INCLUDE),
        "endpoint": hub.url,
        "commit": repo.commit,
        "files": {
            name: {
                "size": (repo.folder / name).stat().st_size,
                "sha256": sha256((repo.folder / name).read_bytes()).hexdigest(),
            }
            for name in names
        },
    }


def test_a_pickle_is_taken_only_by_name(folder, download):
    download(include=["transformer/*.bin"])
    assert files_of(folder) == {"transformer/model.bin", "download.json"}
    download(include=())
    assert "transformer/model.bin" not in files_of(folder)


def test_the_second_call_downloads_nothing(hub, download, monkeypatch):
    download()
    hub.log.clear()
    download()
    assert [r.path for r in asked(hub)] == ["/api/models/org/model/revision/main"]
    hub.log.clear()
    monkeypatch.setattr(OFFLINE, True)
    download()
    assert asked(hub) == []


def test_a_lost_file_is_fetched_again(hub, folder, download):
    download()
    (folder / "model_index.json").unlink()
    hub.log.clear()
    download()
    assert fetched(hub) == ["model_index.json"]


def test_files_of_another_commit_do_not_survive(hub, folder, download, tmp_path):
    source = tmp_path / "repo"
    download()
    (folder / "mine.txt").write_text("not from the hub")
    (source / "model_index.json").write_text('{"new": true}')
    (source / "transformer" / "config.json").unlink()
    hub.repos["org/model"] = Repo(source)
    hub.faults.short.add("model_index.json")
    with pytest.raises(OSError, match="was not downloaded whole"):
        download()
    assert not (folder / "download.json").exists()
    assert not (folder / "transformer" / "config.json").exists()
    hub.faults.short.clear()
    hub.log.clear()
    download()
    assert (folder / "model_index.json").read_text() == '{"new": true}'
    assert files_of(folder) == {"model_index.json", BIG, "download.json", "mine.txt"}
    assert fetched(hub) == ["model_index.json"]  # the others are the same
    record = json.loads((folder / "download.json").read_text())
    assert record["commit"] == hub.repos["org/model"].commit


def test_the_server_as_a_command(tmp_path, command):
    """A dataset repository, from ``python tests/hub_server.py``."""
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "metadata.csv").write_text("file_name,text\na.mp4,a\n")
    (tmp_path / "data" / "train" / "a.mp4.tensors.pth").write_bytes(b"tensors")
    script = Path(__file__).parents[1] / "hub_server.py"
    words = [sys.executable, script, "--repo", f"datasets/org/data={tmp_path / 'data'}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        options = ["--include", "metadata.csv", "--include", "*.tensors.pth"]
        try:
            subprocess.run(
                **command(*options, repo="org/data", kind="dataset", url=url), check=True
            )
        finally:
            server.terminate()
    names = {"metadata.csv", "train/a.mp4.tensors.pth", "download.json"}
    assert files_of(tmp_path / "model") == names


# Interruptions


def test_a_broken_connection_resumes(hub, folder, download, tmp_path):
    hub.faults.cut[BIG] = PIECE + 1_000_000
    download()
    sent = [(r.range, r.sent) for r in hub.log if r.method == "GET" and r.path.endswith(BIG)]
    assert sent == [(None, PIECE + 1_000_000), (f"bytes={PIECE}-", SIZE - PIECE)]
    assert (folder / BIG).read_bytes() == (tmp_path / "repo" / BIG).read_bytes()


def test_a_killed_download_keeps_what_it_had(hub, command, folder, download):
    notes = folder / ".cache" / "huggingface" / "download"
    hub.faults.hold[BIG] = PIECE + 1_000_000
    options = [word for pattern in INCLUDE for word in ("--include", pattern)]
    with subprocess.Popen(**command(*options), stderr=subprocess.DEVNULL) as process:
        assert hub.faults.holding.wait(60)
        finished = [notes / f"{n}.json.metadata" for n in ("model_index", "transformer/config")]
        deadline = time.monotonic() + 60
        while not all(note.exists() for note in finished):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    assert list(notes.rglob("*.incomplete"))
    assert not (folder / "download.json").exists()
    hub.faults.hold.clear()
    hub.log.clear()
    download()
    assert fetched(hub) == ["model.safetensors"]
    assert not list(notes.rglob("*.incomplete"))


# Errors


@pytest.mark.parametrize("name", [BIG, "transformer/config.json"])
def test_a_wrong_checksum_is_refused(hub, folder, download, tmp_path, name):
    hub.faults.corrupt.add(name)
    with pytest.raises(ValueError) as error:
        download()
    said, file = str(error.value), folder / name
    assert said.startswith(f"{file}: expected {'sha256' if name == BIG else 'git-sha1'} ")
    good = (tmp_path / "repo" / name).read_bytes()
    if name == BIG:
        bad = bytes([good[0] ^ 1]) + good[1:]
        assert f"sha256 {sha256(good).hexdigest()}, found {sha256(bad).hexdigest()}; " in said
    assert not file.exists()
    assert not (folder / "download.json").exists()
    hub.faults.corrupt.clear()
    download()
    assert file.read_bytes() == good


def test_a_truncated_transfer_is_refused(hub, folder, download):
    hub.faults.short.add(BIG)
    with pytest.raises(OSError) as error:
        download()
    said = str(error.value)
    assert "/org/model was not downloaded whole (Consistency check failed: file should be" in said
    assert f"of size {SIZE} but has size {SIZE // 2}" in said
    assert said.endswith("run the same command again, finished files are kept")
    assert not (folder / "download.json").exists()


def test_a_gated_repository(hub, download, monkeypatch):
    hub.repos["org/model"].token = "secret"
    message = f"{hub.url}/org/model is gated: accept its terms on that page, and set HF_TOKEN"
    with pytest.raises(OSError, match=message):
        download()
    hub.log.clear()
    monkeypatch.setenv("HF_TOKEN", "secret")
    download()
    assert {r.authorization for r in asked(hub)} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("repo", "options", "settings", "message"),
    [
        ("org/none", {}, {}, "/org/none does not exist, or is private"),
        ("org/model", {"kind": "dataset"}, {}, "/datasets/org/model does not exist, or is private"),
        ("org/model", {"revision": "v2"}, {}, "/org/model has no revision 'v2'; expected a branch"),
        (
            "org/model",
            {"include": ["*.json", "vae/*"]},
            {},
            "org/model at main: no file matches 'vae/*'; found 5 files, such as README.md, ",
        ),
        ("org/model", {}, {"HF_HUB_OFFLINE": True}, "run them on the login node"),
        (
            "org/model",
            {},
            {"ENDPOINT": "http://127.0.0.1:9"},
            "http://127.0.0.1:9/org/model cannot be reached ([Errno 111] Connection refused)",
        ),
    ],
    ids=["repository", "kind", "revision", "pattern", "offline", "connection"],
)
def test_errors_are_one_sentence(folder, monkeypatch, repo, options, settings, message):
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    with pytest.raises((OSError, ValueError)) as error:
        download_repository(repo, folder, **{"kind": "model", **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_a_full_disk_is_noticed_before(hub, folder, download, monkeypatch):
    usage = shutil.disk_usage(folder.parent)._replace(free=12_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"model: the download needs 0\.0125 GB, 0\.012 GB are free"):
        download()
    assert all("/resolve/" not in r.path for r in hub.log)


# The prompt suite


@pytest.fixture
def suite_folder(hub, tmp_path, monkeypatch):
    """A folder with the suite's images; the prompt list is served."""
    folder = tmp_path / "suite"
    folder.mkdir()
    (tmp_path / "repo" / INFO_FILE).write_text("[]")
    hub.repos["org/model"] = Repo(tmp_path / "repo")
    monkeypatch.setattr(downloads, "SUITE_URL", f"{hub.url}/org/model/resolve/main/{INFO_FILE}")
    monkeypatch.setattr(downloads, "SUITE_SHA256", sha256(b"[]").hexdigest())
    with ZipFile(folder / "crop.zip", "w") as archive:
        archive.writestr("crop/1-1/a.jpg", b"image")
    return folder


def test_the_suite_and_its_record(suite_folder):
    downloads.download_suite(suite_folder)
    assert (suite_folder / "crop" / "1-1" / "a.jpg").read_bytes() == b"image"
    record = json.loads((suite_folder / "download.json").read_text())
    assert record["url"] == downloads.SUITE_URL
    assert record["commit"] == downloads.SUITE_COMMIT
    archive = (suite_folder / "crop.zip").read_bytes()
    assert {name: file["sha256"] for name, file in record["files"].items()} == {
        INFO_FILE: sha256(b"[]").hexdigest(),
        "crop.zip": sha256(archive).hexdigest(),
    }


def test_a_second_call_asks_for_nothing(suite_folder, hub):
    downloads.download_suite(suite_folder)
    hub.log.clear()
    downloads.download_suite(suite_folder)
    assert hub.log == []


def test_images_that_came_unpacked(suite_folder):
    (suite_folder / "crop.zip").unlink()
    (suite_folder / "crop").mkdir()
    downloads.download_suite(suite_folder)
    record = json.loads((suite_folder / "download.json").read_text())
    assert list(record["files"]) == [INFO_FILE]


def test_another_prompt_list_is_kept_and_refused(suite_folder, hub):
    info_file = suite_folder / INFO_FILE
    info_file.write_text("[1]")
    with pytest.raises(ValueError) as error:
        downloads.download_suite(suite_folder)
    assert str(error.value).startswith(f"{info_file}: expected VBench-I2V's published list, ")
    assert f"SHA-256 {sha256(b'[]').hexdigest()}, found {sha256(b'[1]').hexdigest()}; " in str(
        error.value
    )
    assert info_file.read_text() == "[1]"
    assert hub.log == []
    assert not (suite_folder / "crop").exists()
    assert not (suite_folder / "download.json").exists()


def test_a_changed_prompt_list_is_not_taken(suite_folder, monkeypatch):
    monkeypatch.setattr(downloads, "SUITE_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=f"{INFO_FILE}: expected SHA-256 000.*put the file at "):
        downloads.download_suite(suite_folder)
    assert not (suite_folder / INFO_FILE).exists()
    assert not (suite_folder / "download.json").exists()


def test_images_that_are_no_zip_file(suite_folder):
    (suite_folder / "crop.zip").write_bytes(b"cut off")
    with pytest.raises(
        ValueError, match=r"crop\.zip: expected a zip file with crop/ \(File is not"
    ):
        downloads.download_suite(suite_folder)


def test_images_that_cannot_be_had(suite_folder, monkeypatch):
    def refuse(**options):
        raise DownloadError("Too many users have viewed or downloaded this file recently.")

    (suite_folder / "crop.zip").unlink()
    monkeypatch.setattr("gdown.download", refuse)
    with pytest.raises(ValueError, match=r"\(Too many users.*put their crop.zip at .*crop\.zip"):
        downloads.download_suite(suite_folder)


# Single files and archives


@pytest.fixture
def file_url(hub):
    return f"{hub.url}/org/model/resolve/main/{BIG}"


def test_a_single_file(file_url, tmp_path):
    target = tmp_path / "new" / "file.pth"
    good = (tmp_path / "repo" / BIG).read_bytes()
    downloads.download_file(file_url, target, sha256(good).hexdigest())
    assert target.read_bytes() == good
    assert files_of(target.parent) == {"file.pth"}


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("cut", OSError, "cannot be downloaded (.*); run the same command again, or put"),
        ("short", ValueError, "expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}; run the"),
        ("corrupt", ValueError, "expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}; run the"),
    ],
)
def test_a_file_that_came_wrong_is_not_there(hub, file_url, tmp_path, fault, error, message):
    target = tmp_path / "new" / "file.pth"
    good = (tmp_path / "repo" / BIG).read_bytes()
    if fault == "cut":
        hub.faults.cut[BIG] = PIECE
    else:
        getattr(hub.faults, fault).add(BIG)
    with pytest.raises(error, match=message) as caught:
        downloads.download_file(file_url, target, sha256(good).hexdigest())
    assert str(caught.value).startswith(file_url)
    assert str(caught.value).endswith(f"put the file at {target}")
    assert "\n" not in str(caught.value)
    assert list(target.parent.iterdir()) == []


def test_a_file_that_cannot_be_had(hub, tmp_path):
    url = f"{hub.url}/none.pth"
    with pytest.raises(OSError, match=f"{url} cannot be downloaded "):
        downloads.download_file(url, tmp_path / "file.pth")


def zipped(path, **members):
    with ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_unpacking_takes_what_is_named(tmp_path):
    names = {"top/a.py": "a", "top/code/b.py": "b", "top/code/in/c.py": "c", "top/d.gif": "d"}
    archive = zipped(tmp_path / "code.zip", **names, **{"top/code/../../../evil": "!"})
    downloads.unpack(archive, tmp_path / "out", ["a.py", "code/"], inside="top/")
    assert files_of(tmp_path / "out") == {"a.py", "code/b.py", "code/in/c.py"}
    assert (tmp_path / "out" / "code" / "in" / "c.py").read_text() == "c"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["code.zip", "out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.py", "code"]


def test_an_archive_that_lacks_a_name(tmp_path):
    archive = zipped(tmp_path / "code.zip", **{"a.py": "a", "other.py": "b"})
    with pytest.raises(
        ValueError,
        match=r"code\.zip: expected a zip file with a\.py, code/ \(it has no code/\); del",
    ):
        downloads.unpack(archive, tmp_path / "out", ["a.py", "code/"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_archive(tmp_path):
    archive = zipped(tmp_path / "code.zip", **{"a.py": "content"})
    archive.write_bytes(archive.read_bytes().replace(b"content", b"conTent"))
    with pytest.raises(ValueError, match=r"code\.zip: expected .*Bad CRC-32 for file 'a\.py'"):
        downloads.unpack(archive, tmp_path / "out", ["a.py"])
    assert list((tmp_path / "out").iterdir()) == []
