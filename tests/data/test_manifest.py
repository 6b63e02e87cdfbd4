import pandas as pd
import pytest

from pusa.data.manifest import check_manifest, is_complete, read_manifests


def test_lists_of_one_folder(tmp_path):
    (tmp_path / "a.csv").write_text("file,index,prompt,sample\n0-0.mp4,0,NA,0\n")
    (tmp_path / "b.csv").write_text("file,index,prompt,sample\n1-0.mp4,1,12,0\n")
    videos, folder = read_manifests([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert (folder, list(videos["prompt"])) == (tmp_path, ["NA", "12"])  # texts, as they are
    (tmp_path / "c.csv").write_text("file,index\n")
    with pytest.raises(ValueError, match=r"c\.csv: a list of videos has no column prompt, sample"):
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


def test_list_is_complete_with_all_its_videos(tmp_path):
    manifest = tmp_path / "shard0.csv"
    manifest.write_text("file,index\n0000-0.mp4,0\n0001-0.mp4,1\n")
    (tmp_path / "0000-0.mp4").touch()
    assert not is_complete(manifest)
    (tmp_path / "0001-0.mp4").touch()
    assert is_complete(manifest)
