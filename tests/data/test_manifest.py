import os
import time

import numpy as np
import pandas as pd
import pytest

from pusa.data.manifest import (
    COLUMNS,
    check_files,
    check_manifest,
    find_changed,
    read_manifests,
    write_manifest,
)
from pusa.data.video import read_settings, read_video, write_video
from pusa.digests import digest_file


def test_lists_of_one_folder(tmp_path):
    (tmp_path / "a.csv").write_text("file,index,prompt,sample,sha256\n0-0.mp4,0,NA,0,a\n")
    (tmp_path / "b.csv").write_text("file,index,prompt,sample,sha256\n1-0.mp4,1,12,0,b\n")
    videos, folder = read_manifests([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert (folder, list(videos["prompt"])) == (tmp_path, ["NA", "12"])  # texts, as they are
    (tmp_path / "c.csv").write_text("file,index\n")
    with pytest.raises(
        ValueError, match=r"c\.csv: a list of videos has no column prompt, sample, sha256"
    ):
        read_manifests([tmp_path / "c.csv"])
    (tmp_path / "d.csv").write_text("")
    with pytest.raises(ValueError, match=r"d\.csv: cannot be read as a list of videos"):
        read_manifests([tmp_path / "d.csv"])
    with pytest.raises(ValueError, match=r"manifests of one folder are expected, found .*, "):
        read_manifests([tmp_path / "a.csv", tmp_path / "x" / "b.csv"])


def test_videos_are_of_the_suite(prompts):
    videos = pd.DataFrame({"file": ["0001-0.mp4"], "index": [1], "prompt": [prompts[1].prompt]})
    check_manifest(prompts, videos)
    with pytest.raises(ValueError, match=r"video 0001-0\.mp4 was made for 'a dog', but the suite"):
        check_manifest(prompts, videos.assign(prompt="a dog"))
    with pytest.raises(ValueError, match=r"video 0001-0\.mp4: the suite has no prompt 99"):
        check_manifest(prompts, videos.assign(index=99))


@pytest.fixture
def videos(tmp_path):
    """Two videos that say what they are of, with their list."""
    frames = np.full((5, 16, 16, 3), 20, np.uint8)
    frames += np.arange(0, 100, 20, dtype=np.uint8)[:, None, None, None]  # brighter and brighter
    rows = []
    for n, prompt in enumerate(("a dog", "a cat")):
        write_video(tmp_path / f"{n}.mp4", frames + 30 * n, {"prompt": prompt, "sample": 0})
        rows.append((f"{n}.mp4", n, prompt, 0, digest_file(tmp_path / f"{n}.mp4")))
    pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / "shard0.csv", index=False)
    return tmp_path


def reverse(path):
    write_video(path, read_video(path)[::-1], read_settings(path))


def swap(videos):
    os.replace(videos / "0.mp4", videos / "kept.mp4")
    os.replace(videos / "1.mp4", videos / "0.mp4")
    os.replace(videos / "kept.mp4", videos / "1.mp4")


def check(videos):
    check_files(*read_manifests([videos / "shard0.csv"]))


def test_videos_are_those_that_were_listed(videos):
    check(videos)
    reverse(videos / "1.mp4")
    with pytest.raises(ValueError, match=r"1\.mp4 was changed after it was listed; delete it"):
        check(videos)
    (videos / "1.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"video .*1\.mp4 is missing"):
        check(videos)


def test_swapped_videos_say_of_what_they_are(videos):
    swap(videos)
    expected = "0.mp4 says that it is of prompt 'a cat', but it is listed for 'a dog'"
    with pytest.raises(ValueError, match=expected):
        check(videos)


def test_changed_videos_are_found(videos):
    manifest, times = videos / "shard0.csv", (videos / "0.mp4").stat()
    assert find_changed(manifest) == []
    reverse(videos / "0.mp4")
    os.utime(videos / "0.mp4", ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it were old
    assert find_changed(manifest) == [videos / "0.mp4"]
    (videos / "1.mp4").unlink()
    assert find_changed(manifest) == [videos / "0.mp4", videos / "1.mp4"]


def test_swapped_videos_are_found(videos):
    swap(videos)
    assert find_changed(videos / "shard0.csv") == [videos / "0.mp4", videos / "1.mp4"]


def test_videos_are_not_read_again_without_need(videos, monkeypatch):
    (videos / "0.mp4").chmod(0o600)  # touched, as by a copy of the folder
    time.sleep(0.02)  # a tick of the file system's clock
    assert find_changed(videos / "shard0.csv") == []
    read = []
    monkeypatch.setattr(
        "pusa.data.manifest.digest_file", lambda f: read.append(f) or digest_file(f)
    )
    assert find_changed(videos / "shard0.csv") == []
    assert read == [videos / "shard0.csv"]


def test_a_list_that_was_touched_later_hides_nothing(videos):
    manifest = videos / "shard0.csv"
    write_manifest(read_manifests([manifest])[0], manifest)
    reverse(videos / "0.mp4")
    time.sleep(0.02)
    manifest.chmod(0o600)
    assert find_changed(manifest) == [videos / "0.mp4"]


def test_lists_that_were_exchanged(videos):
    manifest = videos / "shard0.csv"
    write_manifest(read_manifests([manifest])[0], manifest)
    assert find_changed(manifest) == []
    videos.rename(videos.with_name("another"))
    expected = f"shard0.csv is a list of {videos.name}, expected one of another"
    with pytest.raises(ValueError, match=expected):
        find_changed(videos.with_name("another") / "shard0.csv")


@pytest.mark.parametrize("name", ["", ".", "..", "/etc", "../0.mp4", "/tmp/0.mp4", "0.txt"])
def test_a_name_that_is_no_video_beside_the_list(videos, name):
    manifest = videos / "shard0.csv"
    manifest.write_text(manifest.read_text().replace("0.mp4", name, 1))
    with pytest.raises(ValueError, match=r"found the video .*, expected one beside the list"):
        read_manifests([manifest])


@pytest.mark.parametrize("again", [{"index": 1}, {"file": "0001-9.mp4"}])
def test_a_video_that_is_listed_twice(prompts, again):
    row = {"file": "0001-0.mp4", "index": 1, "prompt": prompts[1].prompt, "sample": 0}
    with pytest.raises(ValueError, match=r"video 0001-\d\.mp4 is listed twice"):
        check_manifest(prompts, pd.DataFrame([row, row | again]))
