import json

import numpy as np
import pandas as pd
import pytest

from pusa.data.suite import SuitePrompt
from pusa.digests import digest_file
from pusa.score.files import (
    COLUMNS,
    extend_scores,
    gather_scores,
    read_record,
    read_scores,
    write_scores,
)

RECORD = {
    "scorer": "vbench",
    "dimensions": ["i2v_subject"],
    "device": "a GPU",
    "packages": {"vbench": "0.1.5", "torch": "2.5.1"},
    "imaging_quality_mode": "longer",
}
#: As VBench-I2V's: one more dimension is listed than the nine.
SUITE = [
    SuitePrompt(0, "a cat", ("i2v_subject", "dynamic_degree", "temporal_flickering"), None),
    SuitePrompt(1, "a house", ("i2v_background", "temporal_flickering"), None),
    SuitePrompt(2, "a road, camera static", ("camera_motion",), None),
]
VIDEOS = pd.DataFrame(
    [(p.video_name(s), p.index, p.prompt, s, f"{p.index}{s}") for p in SUITE for s in (0, 1)],
    columns=["file", "index", "prompt", "sample", "sha256"],
)


def row(index, sample, dimension, value, *, frames=17, scorer="vbench"):
    video = (f"{index:04d}-{sample}.mp4", f"{index}{sample}", index, sample, SUITE[index].kind)
    return (*video, dimension, value, frames, scorer)


def rows(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture
def table():
    return rows(
        row(0, 0, "i2v_subject", 0.1 + 0.2),  # all digits survive
        row(0, 0, "dynamic_degree", 1.0),
        row(0, 1, "i2v_subject", 0.5),
        row(0, 1, "dynamic_degree", 0.0),
    )


@pytest.fixture
def file(tmp_path, table):
    write_scores(table, RECORD, tmp_path / "a-alpha1.4.csv")
    return tmp_path / "a-alpha1.4.csv"


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def misrecord(file, old, new):
    """Edit a table as a faulty scorer would have written it, with a record of its own."""
    before = read_record(file)["sha256"][file.name]
    edit(file, old, new)
    edit(file.with_suffix(".json"), before, digest_file(file))


# One file


def test_round_trip(tmp_path, table, file):
    back = read_scores(file)
    pd.testing.assert_frame_equal(back, table, check_exact=True)
    record = json.loads((tmp_path / "a-alpha1.4.json").read_text())
    assert record == {**RECORD, "sha256": {file.name: digest_file(file)}}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-alpha1.4.csv", "a-alpha1.4.json"]


def test_a_job_without_videos_of_its_dimension(tmp_path):
    write_scores(rows(), RECORD, tmp_path / "a.csv")
    assert read_scores(tmp_path / "a.csv").empty


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"score file .*a\.csv does not exist"):
        read_scores(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.5,", "nan,", "row 4: value of i2v_subject of 0000-1.mp4 is nan, expected a finite"),
        ("0.5,", ",", "row 4: value of i2v_subject of 0000-1.mp4 is empty, expected a finite"),
        ("0.5,", "inf,", "row 4: value .* is inf, expected a finite number"),
        ("0.5,", "half,", "row 4: value .* is half, expected a finite number"),
        ("0.5,", "1.01,", "row 4: value .* is 1.01, expected 0 to 1"),
        ("0.5,", "-0.01,", "row 4: value .* is -0.01, expected 0 to 1"),
        ("1.0,17", "0.9,17", "row 3: value of dynamic_degree .* is 0.9, expected 0 or 1"),
        (",17,", ",1,", "row 2: frames .* is 1, expected a whole number from 2"),
        (",17,", ",17.5,", "row 2: frames .* is 17.5, expected a whole number from 2"),
        ("mp4,01,0,1", "mp4,01,0,-1", "row 4: sample .* is -1, expected a whole number from 0"),
        ("mp4,01,0,1", "mp4,01,x,1", "row 4: index .* is x, expected a whole number from 0"),
        ("subject,", "object,", "row 2: kind .* is object, expected one of subject, background"),
        ("vbench", "weight_free", "row 2: scorer .* is weight_free, expected vbench, as recorded"),
        ("dynamic_degree", "i2v_subject", "row 3 repeats row 2: i2v_subject of 0000-0.mp4"),
        ("1.mp4,01,0,1", "2.mp4,01,0,0", "row 4 repeats row 2: i2v_subject of 0000-2.mp4"),
        (",frames", ",length", "columns are file, .*length, scorer; expected file, .*frames"),
        ("0.5,", "0.5,0.5,", "cannot be read as CSV"),
    ],
)
def test_damage_is_named(file, old, new, message):
    misrecord(file, old, new)
    with pytest.raises(ValueError, match=rf"a-alpha1\.4\.csv.*{message}"):
        read_scores(file)


def test_bytes_that_are_no_text(file):
    before = digest_file(file)
    file.write_bytes(b"\xff\xfe" + file.read_bytes())
    edit(file.with_suffix(".json"), before, digest_file(file))
    with pytest.raises(ValueError, match=r"a-alpha1\.4\.csv: cannot be read as CSV"):
        read_scores(file)


@pytest.mark.parametrize("value", [1.0005, -0.0005])
def test_a_cosine_may_be_rounded(tmp_path, value):
    write_scores(rows(row(0, 0, "i2v_subject", value)), RECORD, tmp_path / "a.csv")
    assert read_scores(tmp_path / "a.csv")["value"].item() == value


@pytest.mark.parametrize(
    ("dimension", "value", "scorer"),
    [
        ("aesthetic_quality", 1.3, "vbench"),  # of networks that are asked for a number
        ("imaging_quality", -0.2, "vbench"),
        ("reference_psnr", 31.5, "weight_free"),  # dB
    ],
)
def test_what_may_pass_the_bounds(tmp_path, dimension, value, scorer):
    table = rows(row(0, 0, dimension, value, scorer=scorer))
    write_scores(table, RECORD | {"scorer": scorer}, tmp_path / "a.csv")
    assert read_scores(tmp_path / "a.csv")["value"].item() == value


@pytest.mark.parametrize(
    ("dimension", "value", "scorer"),
    [
        ("imaging_quality", 68.2, "vbench"),  # on VBench's own scale, per cent
        ("aesthetic_quality", -3.0, "vbench"),
        ("imaging_quality", 1.3, "weight_free"),
        ("reference_psnr", 500.0, "weight_free"),
        ("reference_psnr", -1.0, "weight_free"),
    ],
)
def test_a_value_on_another_scale(tmp_path, dimension, value, scorer):
    table = rows(row(0, 0, dimension, value, scorer=scorer))
    with pytest.raises(ValueError, match=rf"{dimension} of .* is {value}, expected 0 to (1|60)"):
        write_scores(table, RECORD | {"scorer": scorer}, tmp_path / "a.csv")


def test_a_measure_that_fails_is_not_written(tmp_path, table, file):
    before = file.read_bytes()
    table.loc[2, "value"] = np.nan
    with pytest.raises(ValueError, match=r"row 4: value of i2v_subject of 0000-1\.mp4 is nan"):
        write_scores(table, RECORD, file)
    assert file.read_bytes() == before


def test_a_table_is_not_lost_to_its_record(tmp_path, table):
    with pytest.raises(ValueError, match=r"a\.json: the table cannot have the name of its record"):
        write_scores(table, RECORD, tmp_path / "a.json")


# Interrupted jobs


@pytest.mark.parametrize("bytes_left", [0, 20, -1, -5])
def test_cut_in_a_row(file, bytes_left):
    file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(ValueError, match=r"csv was cut, edited or ex.*delete it and run"):
        read_scores(file)


def test_cut_between_rows(file):
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"csv was cut, edited or ex.*delete it and run"):
        read_scores(file)


def test_an_edited_value(file):
    edit(file, "0.5,", "0.9,")
    with pytest.raises(ValueError, match=r"csv was cut, edited or ex.*delete it and run"):
        read_scores(file)


@pytest.mark.parametrize("content", [None, "", '{"scorer": "vb'])
def test_record_missing_or_cut(file, content):
    record = file.with_suffix(".json")
    record.unlink() if content is None else record.write_text(content)
    with pytest.raises(ValueError, match=r"no complete record a-alpha1\.4\.json; .*delete it and"):
        read_scores(file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("packages", None, "packages is None, expected a table"),
        ("dimensions", None, "dimensions is None, expected a list"),
        ("device", None, "device is None, expected text"),
        ("sha256", None, "sha256 is None, expected a table"),
        ("scorer", "eyes", "scorer is 'eyes', expected one of vbench, weight_free"),
    ],
)
def test_a_record_that_was_edited(file, key, value, message):
    record = file.with_suffix(".json")
    content = json.loads(record.read_text()) | {key: value}
    record.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        read_scores(file)


def test_the_record_of_an_older_run_does_not_stay(table, file, monkeypatch):
    """Killed between the two files, a second run must not look complete."""

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pusa.score.files.json.dumps", killed)
    with pytest.raises(KeyboardInterrupt):
        write_scores(table, RECORD, file)
    with pytest.raises(ValueError, match="no complete record"):
        read_scores(file)


# Gathering


VALUES = {
    "i2v_subject": [row(0, 0, "i2v_subject", 0.75), row(0, 1, "i2v_subject", 0.5)],
    "dynamic_degree": [row(0, 0, "dynamic_degree", 1.0), row(0, 1, "dynamic_degree", 0.0)],
    "i2v_background": [row(1, 0, "i2v_background", 0.25), row(1, 1, "i2v_background", 1.0)],
    "camera_motion": [row(2, 0, "camera_motion", 1.0), row(2, 1, "camera_motion", 1.0)],
}


@pytest.fixture
def shards(tmp_path):
    """Two files of each dimension, one video in each, the later ones first."""
    files = []
    for dimension, scores in VALUES.items():
        for shard in (1, 0):
            files.append(tmp_path / f"{dimension}-{shard}.csv")
            record = {**RECORD, "dimensions": [dimension], "device": f"GPU {shard}"}
            write_scores(rows(scores[shard]), record, files[-1])
    return files


def rewrite(file, *scores, **facts):
    record = json.loads(file.with_suffix(".json").read_text())
    del record["sha256"]
    write_scores(rows(*scores), {**record, **facts}, file)


def test_every_sample_of_every_prompt_is_asked_for(shards):
    part = VIDEOS[VIDEOS["index"] != 1]
    with pytest.raises(ValueError, match=r"0001-0\.mp4 is missing: .* sample 0 of prompt 1, 'a ho"):
        gather_scores(shards, SUITE, part, samples=2)
    with pytest.raises(ValueError, match=r"0000-2\.mp4 is missing: no manifest lists sample 2"):
        gather_scores(shards, SUITE, VIDEOS, samples=3)


def test_videos_of_another_list_of_prompts(shards):
    videos = VIDEOS.replace({"prompt": {"a house": "a hut"}})
    with pytest.raises(ValueError, match=r"0001-0\.mp4 was made for 'a hut', but .* is 'a house'"):
        gather_scores(shards, SUITE, videos, samples=2)


def test_one_video_has_one_length(shards):
    rewrite(shards[3], row(0, 0, "dynamic_degree", 1.0, frames=9))
    with pytest.raises(
        ValueError, match=r"0000-0\.mp4 has .*17.* frames in .*; expected one length"
    ):
        gather_scores(shards, SUITE, VIDEOS, samples=2)


def test_gather(shards):
    table, record = gather_scores(shards[::-1], SUITE, VIDEOS, samples=2)
    # In the order of the suite: by prompt, sample, and the prompt's dimensions.
    expected = rows(
        row(0, 0, "i2v_subject", 0.75),
        row(0, 0, "dynamic_degree", 1.0),
        row(0, 1, "i2v_subject", 0.5),
        row(0, 1, "dynamic_degree", 0.0),
        row(1, 0, "i2v_background", 0.25),
        row(1, 1, "i2v_background", 1.0),
        row(2, 0, "camera_motion", 1.0),
        row(2, 1, "camera_motion", 1.0),
    )
    pd.testing.assert_frame_equal(table, expected)
    assert record == {
        "scorer": "vbench",
        "dimensions": sorted(VALUES),
        "devices": ["GPU 0", "GPU 1"],
        "packages": RECORD["packages"],
        "imaging_quality_mode": "longer",
    }


def test_gathered_scores_are_a_score_file(tmp_path, shards):
    table, record = gather_scores(shards, SUITE, VIDEOS, samples=2)
    write_scores(table, record, tmp_path / "all.csv")
    pd.testing.assert_frame_equal(read_scores(tmp_path / "all.csv"), table)


def test_order_of_files_does_not_matter(shards):
    first, second = (
        gather_scores(shards, SUITE, VIDEOS, samples=2),
        gather_scores(shards[::-1], SUITE, VIDEOS, samples=2),
    )
    pd.testing.assert_frame_equal(first[0], second[0])
    assert first[1] == second[1]


def test_missing_scores_are_named(tmp_path, shards):
    rewrite(tmp_path / "dynamic_degree-1.csv")
    shards.remove(tmp_path / "camera_motion-0.csv")
    shards.remove(tmp_path / "camera_motion-1.csv")
    message = (
        r"lack dynamic_degree of 1 video\(s\), such as 0000-1\.mp4, "
        r"camera_motion of 2 video\(s\), such as 0002-0\.mp4"
    )
    with pytest.raises(ValueError, match=message):
        gather_scores(shards, SUITE, VIDEOS, samples=2)


def test_a_score_in_two_files(tmp_path, shards):
    rewrite(tmp_path / "i2v_subject-1.csv", *VALUES["i2v_subject"])
    message = r"i2v_subject of 0000-0\.mp4 is in .*i2v_subject-1\.csv and in .*i2v_subject-0\.csv"
    with pytest.raises(ValueError, match=message):
        gather_scores(shards, SUITE, VIDEOS, samples=2)


def test_unknown_prompt(tmp_path, shards):
    file = tmp_path / "camera_motion-0.csv"
    misrecord(file, "0002-0.mp4,20,2", "0007-0.mp4,20,7")
    with pytest.raises(ValueError, match=r"camera_motion-0\.csv: .* prompt 7, .*not in the suite"):
        gather_scores(shards, SUITE, VIDEOS, samples=2)


def test_video_of_an_unknown_prompt(shards):
    videos = VIDEOS.replace({"index": {1: 8}})
    with pytest.raises(ValueError, match=r"video 0001-0\.mp4: the suite has no prompt 8"):
        gather_scores(shards, SUITE, videos, samples=2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0002-0.mp4,20,2,0", "0002-9.mp4,20,2,9"),  # no such sample
        ("0002-0.mp4", "other.mp4"),
        ("camera,", "subject,"),
        ("camera_motion", "dynamic_degree"),  # not a dimension of this prompt
    ],
)
def test_score_that_nobody_asked_for(tmp_path, shards, old, new):
    misrecord(tmp_path / "camera_motion-0.csv", old, new)
    with pytest.raises(ValueError, match=r"camera_motion-0\.csv: .* not asked for by the suite"):
        gather_scores(shards, SUITE, VIDEOS, samples=2)


def test_scores_of_a_video_that_was_made_anew(shards):
    other = VIDEOS.assign(sha256=VIDEOS["sha256"].replace("20", "new"))
    with pytest.raises(ValueError, match=r"camera_motion of 0002-0\.mp4 is of another video"):
        gather_scores(shards, SUITE, other, samples=2)


def test_measures_beside_the_nine_are_asked_for_of_all(tmp_path, shards):
    everything = [row(p.index, s, "reference_psnr", 20.0) for p in SUITE for s in (0, 1)]
    write_scores(rows(*everything), RECORD, tmp_path / "psnr.csv")
    table, _ = gather_scores([*shards, tmp_path / "psnr.csv"], SUITE, VIDEOS, samples=2)
    assert (table["dimension"] == "reference_psnr").sum() == 6
    write_scores(rows(*everything[:-1]), RECORD, tmp_path / "psnr.csv")
    with pytest.raises(ValueError, match=r"lack reference_psnr of 1 video\(s\), such as 0002-1"):
        gather_scores([*shards, tmp_path / "psnr.csv"], SUITE, VIDEOS, samples=2)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"packages": {"vbench": "0.1.5", "torch": "2.6.0"}}, "torch 2.5.1, .* with 2.6.0"),
        ({"packages": {"vbench": "0.1.5"}}, "torch 2.5.1, .* with None"),
        ({"imaging_quality_mode": "shorter"}, "imaging_quality_mode longer, .* with shorter"),
    ],
)
def test_files_that_were_made_differently(tmp_path, shards, facts, message):
    rewrite(tmp_path / "camera_motion-0.csv", VALUES["camera_motion"][0], **facts)
    with pytest.raises(ValueError, match=rf"made with {message}; .* must be made alike"):
        gather_scores(shards, SUITE, VIDEOS, samples=2)


def test_scorers_are_not_mixed(tmp_path, shards):
    free = row(2, 0, "camera_motion", 1.0, scorer="weight_free")
    rewrite(tmp_path / "camera_motion-0.csv", free, scorer="weight_free")
    with pytest.raises(ValueError, match=r"made with scorer vbench, .* with weight_free"):
        gather_scores(shards, SUITE, VIDEOS, samples=2)


def test_no_files():
    with pytest.raises(ValueError, match="no score files to gather"):
        gather_scores([], SUITE, VIDEOS, samples=2)


def test_a_video_in_two_manifests(shards):
    twice = pd.concat([VIDEOS, VIDEOS.iloc[3:4]], ignore_index=True)
    with pytest.raises(ValueError, match=r"video 0001-1\.mp4 is listed twice"):
        gather_scores(shards, SUITE, twice, samples=2)


# Scores of an earlier run


@pytest.fixture
def scored():
    """A scorer of one dimension that remembers which videos it was asked for."""

    def score(videos):
        score.asked += list(videos["file"])
        found = [row(0, s, "i2v_subject", 0.25) for s in videos["sample"]]
        return rows(*found), RECORD | {"device": "another GPU"}

    score.asked = []
    return score


def subject_videos(samples):
    videos = [(f"0000-{s}.mp4", 0, SUITE[0].prompt, s, f"0{s}") for s in range(samples)]
    return pd.DataFrame(videos, columns=VIDEOS.columns)


def test_scores_of_the_same_videos_are_kept(file, scored):
    table, record = extend_scores(file, subject_videos(4), scored, made_from={})
    assert scored.asked == ["0000-2.mp4", "0000-3.mp4"]
    assert table["value"].tolist() == [0.1 + 0.2, 0.5, 0.25, 0.25]  # of i2v_subject alone
    assert record["devices"] == ["a GPU", "another GPU"]
    assert record["dimensions"] == ["i2v_subject"]
    assert "device" not in record
    more = file.with_name("more.csv")
    write_scores(table, record, more)
    again, record = extend_scores(more, subject_videos(4), scored, made_from={})
    assert len(scored.asked) == 2  # no more
    pd.testing.assert_frame_equal(again, table)
    assert record["devices"] == ["a GPU", "another GPU"]


def test_scores_that_no_longer_hold_are_made_again(file, scored, tmp_path):
    """Of another video, by other packages, of another suite; or of a damaged table."""
    videos = subject_videos(2)
    changed = videos.assign(sha256=["00", "another"])
    table, _ = extend_scores(file, changed, scored, made_from={})
    assert scored.asked == ["0000-1.mp4"]
    assert table["value"].tolist() == [0.1 + 0.2, 0.25]

    other = file.with_name("other.csv")
    write_scores(read_scores(file), RECORD | {"packages": {"vbench": "0.1.4"}}, other)
    damaged = file.with_name("damaged.csv")
    damaged.write_text(file.read_text())
    suite = {"suite": "of another"}
    absent = tmp_path / "none.csv"
    for earlier, made in ((file, suite), (other, {}), (damaged, {}), (absent, {}), (None, {})):
        scored.asked = []
        table, record = extend_scores(earlier, videos, scored, made_from=made)
        assert scored.asked == ["0000-0.mp4", "0000-1.mp4"]
        assert table["value"].tolist() == [0.25, 0.25]
        assert record == RECORD | {"device": "another GPU"} | made
