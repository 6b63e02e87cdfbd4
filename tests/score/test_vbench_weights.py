"""The real table is read, but small fakes are downloaded, from a local server."""

import json
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from zipfile import ZipFile

import pytest

from pusa.score import vbench_weights as weights
from pusa.score.arithmetic import NAMES
from pusa.score.vbench_weights import Download, check_weights, dimension_files, download_weights
from tests.hub_server import HubServer, Repo

FLOW, CODE, BACKBONE = b"flow network", b"def dino(): ...", b"backbone" * 1000
OWN = b"of someone's own"
FILES = {
    "dino_model/backbone.pth",
    "flow/models/flow.pth",
    "torch/hub/a.pth",
    "torch/hub/lora/adapter.bin",
    "torch/hub/lora/adapter.json",
    "torch/hub/code_main/hubconf.py",
}
MADE = {"download.json", "torch/hub/trusted_list"}


def digest(content):
    return sha256(content).hexdigest()


@pytest.fixture
def source(tmp_path):
    """What the server has: a file and three archives."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "backbone.pth").write_bytes(BACKBONE)
    archives = {
        "models.zip": {"models/flow.pth": FLOW, "models/other.pth": b"other"},
        "ensemble.zip": {"a.pth": b"a", "lora/adapter.json": b"{}", "lora/adapter.bin": b"b"},
        "c0ffee.zip": {"code-c0ffee/hubconf.py": CODE, "code-c0ffee/demo.gif": b"GIF"},
    }
    for name, members in archives.items():
        with ZipFile(folder / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    return folder


@pytest.fixture
def server(source):
    with HubServer({"org/files": Repo(source)}) as server:
        yield server


@pytest.fixture
def base(server):
    return f"{server.url}/org/files/resolve/main"


@pytest.fixture
def folder(base, tmp_path, monkeypatch):
    """An empty folder of weights, and a table of small downloads."""
    table = (
        Download(
            dimensions=("i2v_background",),
            kind="file",
            source=f"{base}/backbone.pth",
            folder="dino_model",
            files={"backbone.pth": digest(BACKBONE)},
            megabytes=1,
        ),
        Download(
            dimensions=("i2v_background",),
            kind="zip",
            source=f"{base}/models.zip",
            folder="flow",
            files={"models/flow.pth": digest(FLOW)},
            megabytes=1,
        ),
        Download(
            dimensions=("i2v_background",),
            kind="zip",
            source=f"{base}/ensemble.zip",
            folder="torch/hub",
            files={"a.pth": None, "lora/": None},
            megabytes=1,
        ),
        Download(
            dimensions=("i2v_background",),
            kind="zip",
            source=f"{base}/c0ffee.zip",
            folder="torch/hub/code_main",
            files={"hubconf.py": digest(CODE)},
            megabytes=1,
            inside="code-c0ffee/",
        ),
    )
    monkeypatch.setattr(weights, "DOWNLOADS", table)
    links = {"torch/hub/checkpoints/backbone.pth": "dino_model/backbone.pth"}
    monkeypatch.setattr(weights, "LINKS", links)
    return tmp_path / "weights"


def files_of(folder):
    found = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return {p.relative_to(folder).as_posix() for p in found}


def fetched(server):
    return [r.path.rsplit("/", 1)[1] for r in server.log if r.sent]


def read_record(folder):
    return json.loads((folder / "download.json").read_text())["files"]


# The real table


HUB = "torch/hub"
DINO = {
    "dino_model/dino_vitbase16_pretrain.pth",
    "dino_model/facebookresearch_dino_main/hubconf.py",
    "dino_model/facebookresearch_dino_main/utils.py",
    "dino_model/facebookresearch_dino_main/vision_transformer.py",
    f"{HUB}/checkpoints/dino_vitbase16_pretrain.pth",
    f"{HUB}/facebookresearch_dino_main",
}
#: Where vbench 0.1.5, dreamsim 0.2.1 and torch.hub look, for `VBENCH_CACHE_DIR` as folder.
WANTED = {
    "subject_consistency": DINO,
    "background_consistency": {"clip_model/ViT-B-32.pt"},
    "motion_smoothness": {"amt_model/amt-s.pth"},
    "dynamic_degree": {"raft_model/models/raft-things.pth"},
    "aesthetic_quality": {
        "clip_model/ViT-L-14.pt",
        "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
    },
    "imaging_quality": {"pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"},
    "i2v_subject": DINO,
    "i2v_background": DINO
    | {
        f"{HUB}/dino_vitb16_pretrain.pth",
        f"{HUB}/clip_vitb16_pretrain.pth.tar",
        f"{HUB}/open_clip_vitb16_pretrain.pth.tar",
        f"{HUB}/ensemble_lora/",
    },
    "camera_motion": {
        f"{HUB}/checkpoints/cotracker2.pth",
        f"{HUB}/facebookresearch_co-tracker_main/hubconf.py",
        f"{HUB}/facebookresearch_co-tracker_main/cotracker/",
    },
}


@pytest.mark.parametrize("dimension", NAMES)
def test_the_table_has_what_vbench_looks_for(dimension):
    files = dimension_files(dimension)
    assert len(files) == len(set(files))
    assert set(files) == WANTED[dimension]


def test_every_download_is_for_a_dimension():
    assert {name for d in weights.DOWNLOADS for name in d.dimensions} == set(NAMES)
    assert all(d.dimensions for d in weights.DOWNLOADS)


def test_sources_are_pinned_where_they_can_be():
    for download in weights.DOWNLOADS:
        assert download.kind == "hub" or download.source.startswith("https://")
        if "raw.githubusercontent.com" in download.source or "/archive/" in download.source:
            assert re.search(r"/[0-9a-f]{40}[./]", download.source)
        if download.inside:
            assert re.fullmatch(r"[a-z-]+-[0-9a-f]{40}/", download.inside)
            assert download.inside.split("-")[-1].rstrip("/") in download.source
        for name, expected in download.files.items():
            assert expected is None or re.fullmatch("[0-9a-f]{64}", expected)
            if stated := re.search(r"-([0-9a-f]{8})\.pth$", name):  # torch.hub's convention
                assert expected.startswith(stated[1])


# Downloads


def test_everything_is_in_its_place(folder, base):
    download_weights(folder)
    assert files_of(folder) == FILES | MADE
    assert (folder / "flow/models/flow.pth").read_bytes() == FLOW
    assert (folder / "torch/hub/code_main/hubconf.py").read_bytes() == CODE
    assert (folder / "torch/hub/checkpoints/backbone.pth").read_bytes() == BACKBONE
    assert read_record(folder)["flow/models/flow.pth"] == {
        "size": len(FLOW),
        "sha256": digest(FLOW),
        "source": f"{base}/models.zip",
    }
    assert set(read_record(folder)) == FILES
    check_weights(folder)


def test_a_copy_is_whole(folder, tmp_path):
    download_weights(folder)
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    shutil.rmtree(folder)
    check_weights(tmp_path / "copy")


def test_the_second_call_downloads_nothing(folder, server):
    download_weights(folder)
    (folder / "torch/hub/lora/__pycache__").mkdir()
    (folder / "torch/hub/lora/__pycache__/code.pyc").write_bytes(b"compiled on import")
    record = (folder / "download.json").stat().st_ino
    server.log.clear()
    download_weights(folder)
    assert server.log == []
    assert (folder / "download.json").stat().st_ino == record  # not written anew


def test_finished_files_are_kept(folder, server):
    server.faults.cut["ensemble.zip"] = 50
    with pytest.raises(OSError, match=r"ensemble\.zip cannot be downloaded .*put the file at "):
        download_weights(folder)
    assert not (folder / "download.json").exists()
    assert files_of(folder) == {"dino_model/backbone.pth", "flow/models/flow.pth"}
    server.log.clear()
    download_weights(folder)
    assert fetched(server) == ["ensemble.zip", "c0ffee.zip"]
    check_weights(folder)


def test_a_lost_file_of_an_archive_is_fetched_again(folder, server):
    download_weights(folder)
    shutil.rmtree(folder / "torch/hub/lora")
    server.log.clear()
    download_weights(folder)
    assert fetched(server) == ["ensemble.zip"]
    check_weights(folder)


def test_a_truncated_file_is_not_taken_for_another(folder, server):
    """Its checksum is that of its first download, where the table has none."""
    download_weights(folder)
    (folder / "torch/hub/a.pth").write_bytes(b"")
    shutil.rmtree(folder / "torch/hub/lora")
    server.log.clear()
    with pytest.raises(ValueError, match=rf"a\.pth: expected SHA-256 {digest(b'a')}, found .*dele"):
        download_weights(folder)
    assert server.log == []
    (folder / "torch/hub/a.pth").unlink()
    download_weights(folder)
    check_weights(folder)


def test_files_put_there_by_hand(folder, server, source):
    """Without a network: one as it is, two out of archives, one archive as it is published."""
    for name, content in {
        "dino_model/backbone.pth": BACKBONE,
        "flow/models/flow.pth": FLOW,
        "torch/hub/code_main/hubconf.py": CODE,
    }.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
    shutil.copy(source / "ensemble.zip", folder)
    download_weights(folder)
    assert server.log == []
    assert files_of(folder) == FILES | MADE | {"ensemble.zip"}
    assert read_record(folder)["torch/hub/a.pth"]["sha256"] == digest(b"a")
    check_weights(folder)


def test_a_file_of_the_hub(server, tmp_path, monkeypatch):
    place = tmp_path / "weights" / "amt" / "backbone.pth"
    download = Download(
        dimensions=("motion_smoothness",),
        kind="hub",
        source="org/files",
        folder="amt",
        files={"backbone.pth": None},
        megabytes=1,
    )
    monkeypatch.setattr(weights, "DOWNLOADS", (download,))
    monkeypatch.setattr(weights, "LINKS", {})
    server.point_client(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(OSError, match=f"; or put backbone.pth at {place}$"):
            download_weights(tmp_path / "weights")
    download_weights(tmp_path / "weights")
    assert place.read_bytes() == BACKBONE
    assert read_record(tmp_path / "weights") == {
        "amt/backbone.pth": {
            "size": len(BACKBONE),
            "sha256": digest(BACKBONE),
            "source": "org/files",
            "commit": server.repos["org/files"].commit,
        }
    }


# Errors


def test_a_file_with_a_wrong_checksum_is_kept_and_refused(folder, server):
    wrong = folder / "dino_model" / "backbone.pth"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(OWN)
    with pytest.raises(ValueError) as error:
        download_weights(folder)
    assert str(error.value) == (
        f"{wrong}: expected SHA-256 {digest(BACKBONE)}, found {digest(OWN)}; "
        "delete it to have it downloaded anew"
    )
    assert wrong.read_bytes() == OWN
    assert server.log == []  # before anything is downloaded


def test_another_network_in_an_archive_is_refused(folder, server, source):
    with ZipFile(source / "models.zip", "w") as archive:
        archive.writestr("models/flow.pth", b"another")
    server.repos["org/files"] = Repo(source)
    with pytest.raises(ValueError, match=f"flow.pth: expected SHA-256 {digest(FLOW)}, found"):
        download_weights(folder)
    assert not (folder / "download.json").exists()


def test_an_expired_link(folder):
    """A host then answers with a page."""
    folder.mkdir()
    (folder / "ensemble.zip").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"ensemble\.zip: expected a zip file with a\.pth, lora/ "):
        download_weights(folder)
    assert not list((folder / "torch/hub").glob("a.pth"))
    assert not (folder / "download.json").exists()


def test_a_full_disk_is_noticed_before(folder, server, monkeypatch):
    usage = shutil.disk_usage(folder.parent)._replace(free=3_999_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"the download needs 0\.004 GB, 0\.004 GB are free"):
        download_weights(folder)
    assert server.log == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4_000_000))
    download_weights(folder)


# The check before scoring


def test_a_truncated_file(folder):
    download_weights(folder)
    file = folder / "dino_model" / "backbone.pth"
    file.write_bytes(BACKBONE[:-1])
    with pytest.raises(ValueError) as error:
        check_weights(folder)
    assert str(error.value) == (
        f"{file}: expected {len(BACKBONE)} bytes, found {len(BACKBONE) - 1}; delete it and run "
        f"`pusa download-vbench --weights {folder}` where there is a network"
    )


@pytest.mark.parametrize(
    "name",
    [
        "flow/models/flow.pth",
        "torch/hub/lora/adapter.json",
        "torch/hub/checkpoints/backbone.pth",
        "download.json",
    ],
)
def test_a_missing_file(folder, name):
    download_weights(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match="run `pusa download-vbench --weights ") as error:
        check_weights(folder)
    assert str(error.value).startswith(f"{folder / name} ")
    download_weights(folder)
    assert (folder / name).exists()
    check_weights(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/download\.json does not exist: VBench's"):
        check_weights(tmp_path / "none")


def test_a_download_that_the_record_does_not_know(folder, monkeypatch):
    """As of an earlier version, whose table was shorter."""
    whole = weights.DOWNLOADS
    monkeypatch.setattr(weights, "DOWNLOADS", whole[:2])
    download_weights(folder)
    (folder / "torch/hub/lora").mkdir(parents=True)
    (folder / "torch/hub/a.pth").touch()
    monkeypatch.setattr(weights, "DOWNLOADS", whole)
    with pytest.raises(FileNotFoundError, match=r"torch/hub/lora is missing; run `pusa"):
        check_weights(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_record(folder, content):
    folder.mkdir()
    (folder / "download.json").write_text(content)
    with pytest.raises(ValueError, match=r"download\.json: expected the record of a download"):
        check_weights(folder)


def test_the_check_needs_no_client(folder):
    """VBench's environment has neither pooch nor gdown."""
    download_weights(folder)
    code = (
        "import sys\n"
        "sys.modules.update(pooch=None, gdown=None, huggingface_hub=None)\n"
        "from pusa.score import vbench_weights as weights\n"
        "weights.DOWNLOADS, weights.LINKS = (), {}\n"
        "weights.check_weights(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, folder], check=True)
    (folder / "torch/hub/a.pth").unlink()
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert "FileNotFoundError" in done.stderr
