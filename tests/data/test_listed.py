import json
import shutil

import pytest

from pusa.data.listed import lost_files, take_away
from pusa.data.suite import INFO_FILE
from pusa.report.gallery import Sample, write_gallery


@pytest.fixture
def gallery(tmp_path, dataset):
    clips = sorted((dataset / "train").glob("*.mp4"))[:2]
    write_gallery("Clips", [Sample(clip, "a b", "a dog") for clip in clips], tmp_path / "gallery")
    return tmp_path / "gallery"


@pytest.fixture
def listing(request, tmp_path, dataset, suite, latent_cache, baseline):
    """A list of the kind that is asked for, with a copy of all that it stands for."""
    kind = request.param
    if kind == "gallery":
        return request.getfixturevalue("gallery")
    folder, name = {
        "dataset": (dataset, "metadata.csv"),
        "suite": (suite, INFO_FILE),
        "cache": (latent_cache, "index.json"),
        "model": (baseline, "model_index.json"),
    }[kind]
    return shutil.copytree(folder, tmp_path / kind) / name


KINDS = ("dataset", "suite", "cache", "model", "gallery")


@pytest.mark.parametrize("listing", KINDS, indirect=True)
def test_a_whole_folder_has_lost_nothing(listing):
    assert lost_files(listing) == []


@pytest.mark.parametrize(
    ("listing", "name"),
    [
        ("dataset", "train/video_000002.mp4"),
        ("suite", "crop/1-1/subject 001.jpg"),
        ("suite", "reference/0001.mp4"),
        ("cache", "latents-00000.safetensors"),
        ("cache", "captions.safetensors"),
        ("model", "transformer/diffusion_pytorch_model.safetensors"),
        ("model", "vae/config.json"),
        ("gallery", "gallery/videos/a b/video_000001.mp4"),
    ],
    indirect=["listing"],
)
def test_what_is_lost_is_named(listing, name):
    file = listing.parent / name
    file.unlink()
    assert lost_files(listing) == [file]


@pytest.mark.parametrize("listing", KINDS, indirect=True)
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"{}\n"])
def test_a_damaged_list_is_lost_itself(listing, content):
    page = listing / "index.html" if listing.is_dir() else listing
    page.write_bytes(content)
    assert lost_files(listing) == [listing]


def test_a_damaged_list_of_videos_is_lost_itself(tmp_path):
    manifest = tmp_path / "shard0.csv"
    manifest.write_text("fyle,index,prompt,sample,sha256\n0-0.mp4,0,a,0,b\n")
    assert lost_files(manifest) == [manifest]


def test_a_page_without_its_gallery(gallery):
    (gallery / "index.html").unlink()
    assert lost_files(gallery) == [gallery]


def test_taken_away_for_good(tmp_path, gallery):
    other = tmp_path / "changed.mp4"
    other.touch()
    take_away(gallery, [other, gallery], for_good=True)
    assert list(tmp_path.iterdir()) == []


def test_taken_away_for_a_while(tmp_path, monkeypatch):
    later = []
    monkeypatch.setattr("atexit.register", lambda *call: later.append(call))
    (tmp_path / "index.json").write_text(json.dumps({}))
    take_away(tmp_path / "index.json", [], for_good=False)
    assert not (tmp_path / "index.json").exists()
    [(function, *arguments)] = later
    function(*arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["index.json"]


def test_a_changed_video_is_found_after_a_dry_run_too(tmp_path, monkeypatch):
    later = []
    monkeypatch.setattr("atexit.register", lambda *call: later.append(call))
    video, manifest = tmp_path / "0.mp4", tmp_path / "shard0.csv"
    video.write_bytes(b"another")
    manifest.write_text("file,index,prompt,sample,sha256\n0.mp4,0,a,0,b\n")
    video.chmod(0o600)
    for _ in range(2):
        lost = lost_files(manifest)
        assert lost == [video]
        take_away(manifest, lost, for_good=False)
        function, *arguments = later.pop()
        function(*arguments)
