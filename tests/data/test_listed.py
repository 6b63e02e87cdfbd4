import json
import os
import shutil
import time
from base64 import urlsafe_b64encode

import pytest

from pusa.data.listed import (
    bring_back,
    edited_files,
    keep_edited,
    lost_files,
    note_files,
    take_away,
)
from pusa.data.noted import locked_files
from pusa.data.suite import INFO_FILE
from pusa.digests import write_record
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
    if kind == "trained":
        (tmp_path / "iteration_1.safetensors").write_bytes(b"weights")
        (tmp_path / "training.csv").write_text("iteration,loss\n1,0.5\n")
        (tmp_path / "run.json").write_text("{}")
        return tmp_path / "run.json"
    folder, name = {
        "dataset": (dataset, "metadata.csv"),
        "suite": (suite, INFO_FILE),
        "cache": (latent_cache, "index.json"),
        "model": (baseline, "model_index.json"),
        "merged": (baseline / "transformer", "config.json"),
    }[kind]
    return shutil.copytree(folder, tmp_path / kind) / name


KINDS = ("dataset", "suite", "cache", "model", "merged", "gallery")


FILES = [
    ("dataset", "train/video_000002.mp4"),
    ("suite", "crop/1-1/subject 001.jpg"),
    ("suite", "reference/0001.mp4"),
    ("cache", "latents-00000.safetensors"),
    ("cache", "captions.safetensors"),
    ("model", "transformer/diffusion_pytorch_model.safetensors"),
    ("model", "vae/config.json"),
    ("gallery", "gallery/videos/a b/video_000001.mp4"),
]


@pytest.mark.parametrize("listing", KINDS, indirect=True)
def test_a_whole_folder_has_lost_nothing(listing):
    assert lost_files(listing) == []


@pytest.mark.parametrize(
    ("listing", "name"),
    FILES,
    indirect=["listing"],
)
def test_what_is_lost_is_named(listing, name):
    file = listing.parent / name
    file.unlink()
    assert lost_files(listing) == [file]


@pytest.mark.parametrize(
    ("listing", "name"),
    [
        *FILES,
        ("merged", "diffusion_pytorch_model.safetensors"),
        ("trained", "iteration_1.safetensors"),
        ("trained", "training.csv"),
    ],
    indirect=["listing"],
)
def test_what_is_no_longer_the_same_is_named(listing, name):
    """Other content under the same name, of the same size and times."""
    assert lost_files(listing) == []
    time.sleep(0.02)  # a tick of the file system's clock
    file = listing.parent / name
    content, times = file.read_bytes(), file.stat()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        assert lost_files(listing) == [file]
    file.write_bytes(content)
    assert lost_files(listing) == []
    file.write_bytes(content[:-1])  # and the list with it, as a job does
    page = listing / "index.html" if listing.is_dir() else listing
    page.write_bytes(page.read_bytes())
    assert lost_files(listing) == []


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


@pytest.mark.parametrize("kind", ["dataset", "suite", "cache", "gallery", "videos", "record"])
@pytest.mark.parametrize("name", ["", ".", "../precious", "../../../../precious", "PRECIOUS"])
def test_nothing_but_files_beside_a_list_is_ever_removed(tmp_path, kind, name):
    """A list that leads elsewhere, or to a folder, is a damaged one."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "a.mp4").touch()
    folder = tmp_path / "beside"
    folder.mkdir()
    (folder / "kept.mp4").touch()
    name = name.replace("PRECIOUS", str(precious))
    file, text = {
        "dataset": ("metadata.csv", f"file_name,text\n{name},a\n"),
        "suite": (INFO_FILE, json.dumps([{"image_name": f"../../{name}"}])),
        "cache": ("index.json", json.dumps({"clips": [{"shard": name}]})),
        "gallery": ("gallery/index.html", f'"videos/../../{name}/a.mp4"'),
        "record": ("shard0.json", json.dumps({"sha256": {f"{name}/a.mp4": "b"}})),
        "videos": ("shard0.csv", f"file,index,prompt,sample,sha256\n{name},0,a,0,b\n"),
    }[kind]
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(text)
    listing = folder / "gallery" if kind == "gallery" else folder / file
    take_away(listing, lost_files(listing), for_good=True)
    assert (precious / "a.mp4").exists() and (folder / "kept.mp4").exists()
    assert not listing.exists()


@pytest.fixture
def finish(tmp_path, monkeypatch):
    """A function that records a job's output as Snakemake does, in the working directory."""
    monkeypatch.chdir(tmp_path)

    def record(output, state="metadata"):
        name = urlsafe_b64encode(str(output).encode()).decode()
        parts = [name[i : i + 254] for i in range(0, len(name), 254)]
        file = tmp_path.joinpath(".snakemake", state, *(f"@{p}" for p in parts[:-1]), parts[-1])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"endtime": os.stat(output).st_mtime}))

    return record


def test_a_training_whose_snakemake_was_killed(tmp_path, finish):
    """What it wrote last is not taken for something else than what an earlier one wrote."""
    run = tmp_path / "run.json"
    run.write_text('{"iterations": [2]}')
    finish(run)
    assert lost_files(run) == [run]  # without weights or logs
    (tmp_path / "training.csv").write_text("iteration")
    assert lost_files(run) == []
    finish(run, "incomplete")
    run.write_text('{"iterations": [4]}')
    os.utime(run, (1, 1))
    assert lost_files(run) == []


@pytest.mark.parametrize("listing", KINDS, indirect=True)
def test_a_list_that_was_touched_stands_for_what_it_stood_for(listing, finish):
    """Its own content too: the record of its job tells which writing was noted."""
    page = listing / "index.html" if listing.is_dir() else listing
    finish(listing)
    assert lost_files(listing) == []
    later = time.time() + 1000
    content = page.read_bytes()
    page.write_bytes(content + b"\n")
    os.utime(page, (later, later))
    assert lost_files(listing) == [page]
    page.write_bytes(content)
    os.utime(page, (later, later))
    assert lost_files(listing) == []


def test_a_note_of_a_clock_that_was_ahead(tmp_path):
    record, table = tmp_path / "a.json", tmp_path / "a.csv"
    table.write_text("0.5")
    write_record([table], {})
    note = tmp_path / "single"
    note_files([table], note)
    hidden = tmp_path / ".checked-single.json"
    for at in (2**62, "now", None):
        hidden.write_text(json.dumps(json.loads(hidden.read_text()) | {"at": at}))
        times = table.stat()
        table.write_text("0.9")
        os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert edited_files([table], note) == ([table] if at == 2**62 else [])
    assert lost_files(record) == [table]


def test_a_table_that_was_edited_before_it_was_noted(tmp_path, finish):
    """While another job ran, perhaps: it is not as its own job left it."""
    table, note = tmp_path / "table.csv", tmp_path / "single"
    table.write_text("0.5")
    finish(table)
    assert edited_files([table], note) == []
    os.utime(table, (1, 1))
    note_files([table], note)
    assert edited_files([table], note) == [table]
    table.unlink()
    table.mkdir()
    assert edited_files([table], note) == [table]
    with pytest.raises(FileExistsError, match=r"table\.csv is a folder, expected a file; move it"):
        take_away(table, [table], for_good=False)
    with pytest.raises(FileExistsError, match=r"table\.csv is a folder, expected a file; move it"):
        keep_edited(table)
    table.rmdir()
    table.write_text("0.9")
    assert keep_edited(table).read_text() == "0.9" and not table.exists()


def test_outputs_of_a_call_at_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locked_files() == set()
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.input.lock").write_text("config/a.tsv\n")
    (tmp_path / ".snakemake/locks/0.output.lock").write_text("results/a.csv\nresults/b c.csv\n")
    assert locked_files() == {"results/a.csv", "results/b c.csv"}


def test_transformers_that_were_trained(tmp_path):
    run, weights = tmp_path / "run.json", tmp_path / "iteration_2/weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    run.write_text("{}")
    assert lost_files(run) == []
    weights.write_bytes(b"Weights")
    assert lost_files(run) == [weights]
    run.write_text("[1]")
    assert lost_files(run) == [run]


def test_tables_that_were_exchanged_with_their_records(tmp_path):
    """The record of a table says which file it was, so that another model's is not taken for it."""
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(name)
        write_record([tmp_path / f"{name}.csv"], {"label": name})
        assert lost_files(tmp_path / f"{name}.json") == []
    for kind in ("csv", "json"):
        (tmp_path / f"a.{kind}").rename(tmp_path / "kept")
        (tmp_path / f"b.{kind}").rename(tmp_path / f"a.{kind}")
        (tmp_path / "kept").rename(tmp_path / f"b.{kind}")
        assert lost_files(tmp_path / "a.json") != []
    for text in ("{}", '{"sha256": {}}', '{"sha256": {"b.csv": "0"}}', "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        assert lost_files(tmp_path / "a.json") == [tmp_path / "a.json"]


def test_a_link_that_leads_elsewhere(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "beside"
    for place in (outside, folder):
        place.mkdir()
    (outside / "0.mp4").touch()
    (folder / "link").symlink_to(outside)
    (folder / "metadata.csv").write_text("file_name,text\nlink/0.mp4,a\n")
    assert lost_files(folder / "metadata.csv") == [folder / "metadata.csv"]


def test_an_edited_table(tmp_path):
    files = [tmp_path / name for name in ("a.csv", "b.csv", "later.csv")]
    note = tmp_path / "drawn"
    for file in files[:2]:
        file.write_text("0.5")
    assert edited_files(files, note) == []  # nothing is known of them
    note_files(files, note)
    assert edited_files(files, note) == []
    times = files[0].stat()
    files[0].write_text("0.9")
    os.utime(files[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    files[1].touch()
    files[2].write_text("0.7")
    for _ in range(2):
        assert edited_files(files, note) == files[:1]
    files[0].write_text("0.5")
    assert edited_files(files, note) == []


def test_a_page_without_its_gallery(gallery):
    (gallery / "index.html").unlink()
    assert lost_files(gallery) == [gallery]


def test_taken_away_for_good(tmp_path, gallery):
    other = tmp_path / "changed.mp4"
    other.touch()
    take_away(gallery, [other, gallery], for_good=True)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_dry_run_took_away_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("atexit.register", lambda *call: None)
    (tmp_path / "index.json").write_text("{}")
    take_away(tmp_path / "index.json", [], for_good=False)
    for _ in range(2):
        bring_back(tmp_path / "index.json")
        assert [file.name for file in tmp_path.iterdir()] == ["index.json"]


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
