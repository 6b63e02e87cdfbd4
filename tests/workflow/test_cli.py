import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

from pusa import __version__, cli
from pusa.data.cache import PromptCache, cache_prompts
from pusa.data.manifest import read_manifests
from pusa.data.suite import read_prompts
from pusa.data.video import read_video
from pusa.score.files import gather_scores

COMMANDS = [
    [command.name or command.callback.__name__.replace("_", "-")]
    for command in cli.app.registered_commands
] + [["tiny", command.name] for command in cli.tiny.registered_commands]
CLIP = ["--frames", 9, "--height", 64, "--width", 64]
SIDES = CLIP[2:]


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


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command):
    result = CliRunner().invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_module_answers_without_torch():
    """``python -m pusa --help`` and what rule files import load neither torch nor diffusers."""
    code = (
        "import runpy, sys\n"
        "import pusa.layout, pusa.report.captions, pusa.report.plan, pusa.data.manifest\n"
        "sys.argv = ['pusa', '--help']\n"
        "try:\n    runpy.run_module('pusa', run_name='__main__')\n"
        "finally:\n    sys.exit(3 if {'torch', 'diffusers'} & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vectorized timestep" in done.stdout


# Settings become options


def test_a_section_as_json_and_options_that_count_more(monkeypatch, run):
    seen = []
    monkeypatch.setattr("pusa.train.loop.train", lambda *_, **__: seen.append(_[3]))
    section = '{"rank": 4, "iterations": [2, 4], "offload": "optimizer", "warmup": 3}'
    words = ["train", "c", "t", "o", "--state", "s", "--settings", section]
    code, _, err = run(*words, "--rank", 2, "--offload", "none", "--device", "cpu")
    assert code == 0, err
    (settings,) = seen
    assert (settings.rank, settings.iterations, settings.warmup) == (2, [2, 4], 3)
    assert settings.offload == "none" and settings.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--iterations", 4], "error: --rank: found None with method lora, expected a rank"),
        (["--rank", 4], "error: --iterations is missing"),
        (["--rank", 0, "--iterations", 4], "error: --rank: found 0, expected at least 1"),
        (
            ["--iterations", 4, "--settings", '{"rnk": 1}'],
            "error: --rnk is unknown; expected one of checkpoint_every",
        ),
        (["--settings", "nonsense"], "error: --settings: found 'nonsense', expected a JSON object"),
        (["--settings", "[1]"], "error: --settings: found '[1]', expected a JSON object"),
    ],
)
def test_a_wrong_setting_is_named_as_an_option(run, words, message):
    code, _, err = run("train", "c", "t", "o", "--state", "s", *words)
    assert code == 1
    assert message in err


# Errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["download-vbench"], "expected --suite, --weights or both, found neither"),
        (["attention", "{m}", "{t}/a.csv", "--image", "a.png"], "or --suite, found --image"),
        (["attention", "{m}", "{t}/a.json", "--suite", "{d}"], "a.json: the table cannot have the"),
        (["drift", "{m}", "{t}/a.json", "--lora", "l"], "a.json: the table cannot have the name"),
        (
            ["score", "{d}", "{t}/a.csv", "{t}/v.csv", *CLIP],
            "v.csv does not exist",
        ),
        (
            ["audit", "{t}/a", "--table1", "{t}/1.csv", "--table2", "{t}/2.csv"],
            "1.csv does not exist",
        ),
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
                "merge",
                "--base",
                "{m}/transformer",
                "--lora",
                "{t}/none",
                "--lora-scale",
                1,
                "--out",
                "{t}/out",
            ],
            "LoRA",
        ),
        (["score", "{s}", "{t}/s.csv", "{t}/shard0.csv", *CLIP], "0000-0.mp4 is missing"),
        (["score", "{s}", "{t}/s.csv", "{t}/shard1.csv", *CLIP], "shard1.csv"),
        (["score", "{s}", "{t}/s.csv", "{t}/shard0.csv", "{s}/shard.csv", *CLIP], "one folder"),
        (["check-vbench", "{s}", "--weights", "{t}/none", *SIDES], "none"),
        (["audit", "{t}/a", "--table1", "{t}/none", "--table2", "{t}/none"], "none"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_user_error_is_one_line(run, tmp_path, dataset, model, suite, words, message):
    prompt = read_prompts(suite)[0].prompt
    row = {"file": "0000-0.mp4", "index": 0, "prompt": prompt, "sample": 0, "sha256": "a"}
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
    words = "merge --base base --lora none --lora-scale 1 --out out"
    done = subprocess.run(
        [sys.executable, "-m", "pusa", *words.split()],
        cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(pytest.importorskip("pusa").__path__[0].removesuffix("pusa"))},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: model folder base does not exist\n"


def test_missing_option_is_a_usage_error(run):
    code, _, err = run("merge", "--base", "a", "--lora", "b", "--out", "c")
    assert code == 2
    assert "--lora-scale" in err


def test_a_mistake_of_ours_keeps_its_traceback(run, monkeypatch):
    def broken(*_, **__):
        raise AssertionError("an invariant")

    monkeypatch.setattr("pusa.models.lora.merge_lora", broken)
    with pytest.raises(AssertionError, match="an invariant"):
        run("merge", "--base", "a", "--lora", "b", "--lora-scale", 1, "--out", "c")


def test_uncached_prompts_are_a_user_error(run, tmp_path, suite, model):
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

    videos, _ = read_manifests(shards)
    prompts = read_prompts(suite, {"subject": 1, "background": 1, "camera": 1})
    table, _ = gather_scores(scores, prompts, videos, samples=1)
    assert {"camera_motion", "i2v_subject", "i2v_background"} < set(table["dimension"])
    # one job for all is as good as two
    assert run("score", suite, tmp_path / "once.csv", *shards, *CLIP)[0] == 0
    once = pd.read_csv(tmp_path / "once.csv")
    order = ["file", "dimension"]
    pd.testing.assert_frame_equal(
        once.sort_values(order, ignore_index=True), table.sort_values(order, ignore_index=True)
    )


def test_a_gpu_that_is_not_there(sample, tmp_path):
    code, _, err = sample(tmp_path / "shard0.csv", "--device", "cuda")
    assert code == 1
    assert err.startswith("error: --device cuda: PyTorch")
    assert not list(tmp_path.glob("*.csv"))


def test_cache_prompts_takes_the_negative_prompt(run, tmp_path, suite, model):
    code, _, err = run(
        "cache-prompts", suite, model, tmp_path / "p.safetensors", *SIDES, "--text-tokens", 20,
        "--negative-prompt", "blue dots",
    )  # fmt: skip
    assert code == 0, err
    assert PromptCache(tmp_path / "p.safetensors").negative_prompt == "blue dots"


def test_version_and_groups(run):
    assert run("--version")[:2] == (0, f"pusa {__version__}\n")
    _, out, _ = run("--help")
    titles = ["Make videos", "Data", "Training and weights", "Scoring", "Tables and pages"]
    places = [out.index(f"\u2500 {title} \u2500") for title in titles]
    assert places == sorted(places)


def test_what_moves_the_cursor_is_not_printed(run, tmp_path):
    code, _, err = run(
        "merge", "--base", tmp_path / "a\x1b[2Jb", "--lora", "c", "--lora-scale", 1, "--out", "d"
    )
    assert code == 1
    assert "\x1b" not in err and "a\\x1b[2Jb" in err


def test_a_name_of_the_hub_is_met_with_what_to_run(run, tmp_path):
    name = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    code, _, err = run("generate", "a cat", "--model", name, "--out", tmp_path / "a.mp4")
    assert code == 1
    assert f"`pusa download {name} models/Wan2.1-T2V-1.3B-Diffusers --kind model`" in err
