import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from pusa import cli
from pusa.data.suite import choose_subset, read_prompts
from pusa.data.video import read_video, write_video
from pusa.experiments import read_experiments, settings_over_seeds, unique_settings
from pusa.report.provenance import TRAINING_FACTS
from pusa.score.arithmetic import NAMES
from pusa.score.files import write_scores

CONFIG = Path(__file__).parents[2] / "config"
CLAIMS = CONFIG / "claims.yaml"

COMMANDS = [
    [command.name or command.callback.__name__.replace("_", "-")]
    for command in cli.app.registered_commands
] + [["tiny", command.name] for command in cli.tiny.registered_commands]


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs a command as ``pusa`` does; returns exit code, stdout and stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["pusa", *map(str, words)])
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        else:
            code = 0
        return code, *capsys.readouterr()

    return call


CLIP = ["--frames", 9, "--height", 64, "--width", 64]
SIDES = CLIP[2:]


def test_commands_are_known():
    assert len(COMMANDS) >= 18
    assert ["cache-latents"] in COMMANDS
    assert ["tiny", "suite"] in COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command, flag):
    result = CliRunner().invoke(cli.app, [*command, flag])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    group = cli.tiny if command[0] == "tiny" else cli.app
    names = {c.name or c.callback.__name__.replace("_", "-"): c for c in group.registered_commands}
    first_words = names[command[-1]].callback.__doc__.split()[:3]
    assert " ".join(first_words) in " ".join(result.output.split())


def test_help_of_all():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert all(words[0] in result.output for words in COMMANDS)


def test_module_answers_without_torch():
    """``python -m pusa --help`` imports neither torch nor diffusers."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['pusa', '--help']\n"
        "try:\n    runpy.run_module('pusa', run_name='__main__')\n"
        "finally:\n    sys.exit(3 if {'torch', 'diffusers'} & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vectorized timestep" in done.stdout


# Errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["cache-latents", "{d}/none", "{m}", "{t}/out", *CLIP, "--text-tokens", 20],
            "metadata.csv",
        ),
        (["cache-latents", "{d}", "{t}", "{t}/out", *CLIP, "--text-tokens", 20], "vae/config.json"),
        (["cache-latents", "{d}", "{m}", "{t}/out", *CLIP, "--text-tokens", 3], "at most 3 fit"),
        (
            ["cache-latents", "{d}", "{m}", "{t}/out", "--frames", 37, *SIDES, "--text-tokens", 20],
            "6 of 6 clips cannot be used",
        ),
        (["cache-prompts", "{t}", "{m}", "{t}/p", *SIDES, "--text-tokens", 20], "does not exist"),
        (
            [
                "merge-lora",
                "--base",
                "{m}/transformer",
                "--lora",
                "{t}/none",
                "--scale",
                1,
                "--out",
                "{t}/out",
            ],
            "LoRA",
        ),
        (["score", "{s}", "{t}/s.csv", "{t}/shard0.csv", *CLIP], "0000-0.mp4 is missing"),
        (["score", "{s}", "{t}/s.csv", "{t}/shard1.csv", *CLIP], "shard1.csv"),
        (["score", "{s}", "{t}/s.csv", "{t}/shard0.csv", "{s}/shard.csv", *CLIP], "one folder"),
        (["gather-scores", "{s}", "{t}/s.csv", "{t}/shard0.csv", "--scores", "{t}/a.csv"], "a.csv"),
        (["check-vbench", "{s}", "--weights", "{t}/none", *SIDES], "none"),
        (["audit", "{t}/a", "--table1", "{t}/none", "--table2", "{t}/none"], "none"),
        (["measure-costs", "{t}/c.csv", "--benchmarks", "{t}/none", "--main-run", "a"], "none"),
        (
            [
                "effects",
                "{t}/e",
                CLAIMS,
                "--experiments",
                "{t}/no",
                "--scores",
                "{t}",
                "--runs",
                "{t}",
            ],
            "experiments sheet",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_user_error_is_one_line(run, tmp_path, dataset, model, suite, words, message):
    prompt = read_prompts(suite)[0].prompt
    row = {"file": "0000-0.mp4", "index": 0, "prompt": prompt, "sample": 0}
    pd.DataFrame([row]).to_csv(tmp_path / "shard0.csv", index=False)
    places = {"d": dataset, "m": model, "s": suite, "t": tmp_path}
    code, _, err = run(*(w.format(**places) if isinstance(w, str) else w for w in words))
    assert code == 1
    assert "Traceback" not in err
    # Progress bars come first; what is said is the last line, and one line.
    *_, last = err.strip().splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert err.count("error: ") == 1


def test_error_of_a_process_has_no_traceback(tmp_path):
    command = [sys.executable, "-m", "pusa", "merge-lora", "--base", "base", "--lora", "none"]
    done = subprocess.run(
        [*command, "--scale", "1", "--out", "out"], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(pytest.importorskip("pusa").__path__[0].removesuffix("pusa"))},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: model folder base does not exist\n"


def test_missing_option_is_a_usage_error(run):
    code, _, err = run("merge-lora", "--base", "a", "--lora", "b", "--out", "c")
    assert code == 2
    assert "--scale" in err


def test_a_mistake_of_ours_keeps_its_traceback(run, monkeypatch):
    def broken(*_, **__):
        raise AssertionError("an invariant")

    monkeypatch.setattr("pusa.models.lora.merge_lora", broken)
    with pytest.raises(AssertionError, match="an invariant"):
        run("merge-lora", "--base", "a", "--lora", "b", "--scale", 1, "--out", "c")


def test_uncached_prompts_are_a_user_error(run, tmp_path, suite, model):
    from pusa.data.cache import cache_prompts

    cache_prompts({"red"}, model, tmp_path / "p.safetensors", text_tokens=20)
    code, _, err = run(
        "sample-suite", suite, model, tmp_path / "out" / "manifest.csv",
        "--transformer", model / "transformer", "--prompts", tmp_path / "p.safetensors",
        "--steps", 1, *CLIP,
    )  # fmt: skip
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "holds no embedding of prompt" in line
    assert "Traceback" not in err


# Commands end to end


@pytest.fixture
def sample(run, suite, model, prompt_cache):
    def call(manifest, *options):
        return run(
            "sample-suite", suite, model, manifest,
            "--transformer", model / "transformer", "--prompts", prompt_cache,
            "--steps", 1, *CLIP, "--subject", 1, "--background", 1, "--camera", 1, *options,
        )  # fmt: skip

    return call


def test_sample_and_score(run, sample, tmp_path, suite):
    shards = [tmp_path / f"shard{i}.csv" for i in range(2)]
    for i, shard in enumerate(shards):
        assert sample(shard, "--shard", i, "--shards", 2)[0] == 0
    names = [list(pd.read_csv(shard)["file"]) for shard in shards]
    assert names == [["0000-0.mp4", "0004-0.mp4"], ["0002-0.mp4"]]
    assert read_video(tmp_path / "0004-0.mp4").shape == (9, 64, 64, 3)
    assert pd.read_csv(shards[0])["device"].notna().all()
    scores = [tmp_path / f"scores{i}.csv" for i in range(2)]
    for shard, out in zip(shards, scores, strict=True):
        code, _, err = run("score", suite, out, shard, *CLIP)
        assert code == 0, err
    assert [set(pd.read_csv(file)["index"]) for file in scores] == [{0, 4}, {2}]

    words = [word for file in scores for word in ("--scores", file)]
    counts = ["--subject", 1, "--background", 1, "--camera", 1]
    code, _, err = run("gather-scores", suite, tmp_path / "all.csv", *shards, *words, *counts)
    assert code == 0, err
    table = pd.read_csv(tmp_path / "all.csv")
    assert {"camera_motion", "i2v_subject", "i2v_background"} < set(table["dimension"])
    assert table["value"].notna().all()
    # one job for all is as good as two
    assert run("score", suite, tmp_path / "once.csv", *shards, *CLIP)[0] == 0
    once = pd.read_csv(tmp_path / "once.csv")
    order = ["file", "dimension"]
    pd.testing.assert_frame_equal(
        once.sort_values(order, ignore_index=True), table.sort_values(order, ignore_index=True)
    )

    # a score that is missing is named, and left out only if that is asked for
    part = ["gather-scores", suite, tmp_path / "part.csv", *shards, *words[:2], *counts]
    code, _, err = run(*part)
    assert code == 1 and "0002-0.mp4" in err and not (tmp_path / "part.csv").exists()
    assert run(*part, "--allow-partial")[0] == 0
    assert pd.read_csv(tmp_path / "part.csv")["value"].isna().any()
    # and so is a video that no manifest lists
    code, _, err = run(*part[:3], shards[0], *words[:2], *counts)
    assert code == 1 and "video 0002-0.mp4 is missing: no manifest lists" in err


def test_a_gpu_that_is_not_there(sample, tmp_path):
    code, _, err = sample(tmp_path / "shard0.csv", "--device", "cuda")
    assert code == 1
    assert err.startswith("error: --device cuda: PyTorch")
    assert not list(tmp_path.glob("*.csv"))


def test_cache_prompts_takes_the_negative_prompt_from_a_file(run, tmp_path, suite, model):
    from pusa.data.cache import PromptCache

    (tmp_path / "negative.txt").write_text("blue dots\n")
    code, _, err = run(
        "cache-prompts", suite, model, tmp_path / "p.safetensors", *SIDES, "--text-tokens", 20,
        "--negative-prompt-file", tmp_path / "negative.txt",
    )  # fmt: skip
    assert code == 0, err
    assert PromptCache(tmp_path / "p.safetensors").negative_prompt == "blue dots"


# From scores to tables, figures and records


COUNTS = {"subject": 2, "background": 2, "camera": 3}  # of 2, 2 and 9
SUBSET = [word for kind, n in COUNTS.items() for word in (f"--{kind}", n)]
MAIN = "pusa-rank512-seed0-iteration900-alpha1.4-i2v-steps10"


@pytest.fixture
def study(tmp_path, prompts):
    """Options that name the paper's sheet and scores of all its settings, made up.

    Where alpha is 1.4 they are 0.8 on the prompts of `COUNTS` and 0.1 on others.
    """
    sheet = CONFIG / "experiments.tsv"
    chosen = choose_subset([p.kind for p in prompts], COUNTS)
    table = read_experiments(sheet, seed=0)
    settings = unique_settings(table) | settings_over_seeds(table, [0, 1])
    for setting in settings.values():
        write_study_scores(tmp_path / "scores", setting, prompts, chosen)
    return ["--experiments", sheet, "--scores", tmp_path / "scores", "--seed", 0]


def write_study_scores(folder, setting, prompts, chosen):
    table = pd.DataFrame(
        {
            "file": p.video_name(0),
            "index": p.index,
            "sample": 0,
            "kind": p.kind,
            "dimension": name,
            "value": value_of(setting, p.index in chosen, name),
            "frames": 9,
            "scorer": "weight_free",
        }
        for p in prompts
        for name in NAMES
    )
    folder.mkdir(exist_ok=True)
    record = {"scorer": "weight_free", "dimensions": NAMES, "device": "cpu", "packages": {}}
    write_scores(table, record, folder / f"{setting.name}.csv")


def value_of(setting, chosen, name):
    if name in ("dynamic_degree", "camera_motion"):
        return 1
    return (0.8 if chosen else 0.1) if setting.alpha == 1.4 else 0.5


@pytest.fixture
def training(tmp_path):
    """A folder with the run of every seed: its logs."""
    for run in ("pusa-rank512", "pusa-rank256", "control-rank512"):
        for seed in (0, 1):
            folder = tmp_path / "lora" / f"{run}-seed{seed}"
            folder.mkdir(parents=True)
            (folder / "training.csv").write_text(
                "iteration,loss,elapsed_seconds\n1,1.0,1800\n2,0.8,3600\n"
            )
            losses = ("asynchronous", "image_to_video", "synchronous")
            rows = [f"{i},{name},{1 - i / 10}" for i in (0, 2) for name in losses]
            (folder / "validation.csv").write_text("\n".join(["iteration,loss,value", *rows]))
            (folder / "run.json").write_text(json.dumps(dict.fromkeys(TRAINING_FACTS, "x")))
    return tmp_path / "lora"


def test_tables(run, study, tmp_path):
    costs = "stage,jobs,hours,gpu_hours,usd\ntotal,1,2.0,16.0,40.0\n"
    (tmp_path / "costs.csv").write_text(costs)
    published = [x for n in (1, 2) for x in (f"--table{n}", CONFIG / f"published/table{n}.csv")]
    code, _, err = run(
        "tables", tmp_path / "out", *study, *published, "--costs", tmp_path / "costs.csv",
        "--scale", "A small run.", *SUBSET,
    )  # fmt: skip
    assert code == 0, err
    one, two = (pd.read_csv(tmp_path / "out" / f"table{n}.csv") for n in (1, 2))
    ours = one[one["source"] == "here"]
    # Wan-I2V's and the base's of the subset, the main setting's of all
    assert list(ours["videos"].dropna()) == [7, 7, 13]
    assert (two["source"] == "here").sum() == 32
    assert set(two["videos"].dropna()) == {7}
    at = two[(two["group"] == "steps") & (two["steps"] == 10) & (two["source"] == "here")]
    assert list(at["i2v_subject"]) == [80]  # without the prompts beyond the subset
    page = (tmp_path / "out" / "table1.html").read_text()
    assert "A small run. Cost: everything in this folder took 16.0 GPU-hours, $40.00" in page


def test_effects_of_one_seed_and_of_several(run, study, training, tmp_path):
    options = [*study, "--runs", training, "--scale", "A small run.", *SUBSET]
    code, _, err = run("effects", tmp_path / "one.csv", CLAIMS, *options)
    assert code == 0, err
    several = ["--effect-seed", 0, "--effect-seed", 1]
    code, _, err = run("effects", tmp_path / "two.csv", CLAIMS, *options, *several)
    assert code == 0, err
    for name, seeds in (("one", 1), ("two", 2)):
        table = pd.read_csv(tmp_path / f"{name}.csv").set_index(["effect", "measure"])
        row = table.loc[("follows the image better than base + VTA", "i2v_subject")]
        assert row["difference"] == pytest.approx(30)  # on the subset
        assert (row["verdict"], row["seeds"]) == ("holds", seeds)
        assert "Validation loss" in (tmp_path / f"{name}.md").read_text()


def test_plots_of_losses_and_scores(run, study, training, tmp_path):
    code, _, err = run("plot-losses", tmp_path / "losses.png", training / "pusa-rank512-seed0")
    assert code == 0, err
    table2 = CONFIG / "published/table2.csv"
    code, _, err = run("plot-scores", tmp_path / "scores.png", *study, "--table2", table2, *SUBSET)
    assert code == 0, err
    for name in ("losses", "scores"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > picture.height


def test_pictures_of_videos(run, suite, prompts, study, tmp_path):
    for prompt in prompts:  # all of the main setting, the subset's of the others
        for name in (MAIN, "base-i2v-steps10", "wan_i2v-i2v-steps50"):
            clip = read_video(suite / "reference" / prompt.reference_name)[:5]
            (tmp_path / "samples" / name).mkdir(parents=True, exist_ok=True)
            if name == MAIN or prompt.index in (0, 1, 2, 3, 4, 7, 10):
                settings = {"prompt": prompt.prompt, "given": [[1, 1, 0.0]]}
                write_video(tmp_path / "samples" / name / prompt.video_name(0), clip, settings)
    options = [
        suite, "--experiments", study[1], "--samples", tmp_path / "samples", "--seed", 0, *SIDES,
    ]  # fmt: skip
    for command, name in (("plot-figure3", "figure3.png"), ("contact-sheet", "sheet.png")):
        code, _, err = run(command, tmp_path / name, *options, *SUBSET)
        assert code == 0, err
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 100
    assert read_video(tmp_path / "sheet.mp4").shape == (5, 2 * 256, 6 * 256, 3)  # of seven
    titled = ["--figure", 6, "--task", "i2v", "--note", "Five frames."]
    code, _, err = run("plot-samples", tmp_path / "figure6.png", *options, *SUBSET, *titled)
    assert code == 0, err
    videos = [tmp_path / "samples" / MAIN / p.video_name(0) for p in prompts[:2]]
    titled = ["--figure", 7, "--title", "Start and end"]
    code, _, err = run("plot-strips", tmp_path / "figure7.png", *videos, *titled)
    assert code == 0, err
    for number in (6, 7):
        assert (tmp_path / f"figure{number}.pdf").exists()
    code, _, err = run("plot-strips", tmp_path / "figure7.png", tmp_path / "gone.mp4", *titled)
    assert code == 1
    assert err == f"error: video {tmp_path / 'gone.mp4'} is missing\n"


def test_figure1(run, study, tmp_path):
    """From the tables that other commands write."""
    options = [*study[:2], *study[4:]]
    costs = tmp_path / "costs.csv"
    costs.write_text(f"stage,jobs,hours,gpu_hours,usd\ntrain_lora: {MAIN},1,2,16,\n")
    published = pd.read_csv(CONFIG / "published/table1.csv").assign(
        source="published", scorer="", total_low="", total_high=""
    )
    published.to_csv(tmp_path / "table1.csv", index=False)
    words = ["plot-figure1", tmp_path / "figure1.png", *options, "--costs", costs, "--clips", 3860]
    code, _, err = run(*words, "--table1", tmp_path / "table1.csv")
    assert code == 0, err
    with Image.open(tmp_path / "figure1.png") as picture:
        assert picture.width == 1400
    code, _, err = run(*words, "--table1", tmp_path / "gone.csv")
    assert code == 1
    assert err == f"error: {tmp_path / 'gone.csv'} does not exist\n"


def test_costs_and_provenance(run, training, tmp_path):
    benchmarks = tmp_path / "benchmarks/train_lora"
    benchmarks.mkdir(parents=True)
    runs = []
    for name in ("pusa-rank512-seed0", "control-rank512-seed0"):
        (benchmarks / f"{name}.tsv").write_text("s\th:m:s\n1800.0\t0:30:00\n")
        runs += ["--run", training / name]
    code, _, err = run(
        "measure-costs", tmp_path / "costs.csv", "--benchmarks", tmp_path / "benchmarks", *runs,
        "--main-run", "pusa-rank512-seed0", "--gpus", "train_lora=8", "--gpus", "sample_videos=1",
        "--usd-per-gpu-hour", 2.5,
    )  # fmt: skip
    assert code == 0, err
    costs = pd.read_csv(tmp_path / "costs.csv").set_index("stage")
    assert costs["gpu_hours"].to_dict() == {
        "train_lora: pusa-rank512-seed0": 8,
        "train_lora": 16,
        "total": 16,
    }
    assert costs.loc["total", "usd"] == 40

    (tmp_path / "samples/base").mkdir(parents=True)
    (tmp_path / "samples/base/shard0.csv").write_text("file,device\n0.mp4,1 x A\n")
    (tmp_path / "download.json").write_text('{"repo": "a/b", "commit": "abc", "files": {}}')
    config = {
        "lora": {"source": "trained"},
        "train": {"seed": 0},
        "sample": {"seed": 0},
        "effects": {"seeds": [0]},
    }
    code, _, err = run(
        "record-provenance", tmp_path / "provenance", "--config", json.dumps(config),
        "--costs", tmp_path / "costs.csv", "--benchmarks", tmp_path / "benchmarks",
        "--samples", tmp_path / "samples", "--scores", tmp_path / "scores", *runs,
        "--download-record", tmp_path / "download.json",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert record["config"] == config
    assert record["devices"] == {"sampling": ["1 x A"], "scoring": []}
    assert record["training"].keys() == {"pusa-rank512-seed0", "control-rank512-seed0"}
    assert record["downloads"][str(tmp_path)]["commit"] == "abc"
    assert {p.suffix for p in tmp_path.glob("provenance.*")} == {".json", ".md", ".html"}
