import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

from pusa import cli
from pusa.video import read_video

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
        (["merge-lora", "{m}/transformer", "{t}/none", "{t}/out", "--scale", 1], "LoRA"),
        (["score", "{s}", "{t}/s.csv", "{t}/manifest.csv", *SIDES], "0000-0.mp4 is missing"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_user_error_is_one_line(run, tmp_path, dataset, model, suite, words, message):
    row = {"file": "0000-0.mp4", "index": 0, "prompt": "a", "sample": 0}
    pd.DataFrame([row]).to_csv(tmp_path / "manifest.csv", index=False)
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
    command = [sys.executable, "-m", "pusa", "merge-lora", "base", "none.safetensors", "out"]
    done = subprocess.run(
        [*command, "--scale", "1"], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(pytest.importorskip("pusa").__path__[0].removesuffix("pusa"))},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: model folder base does not exist\n"


def test_missing_option_is_a_usage_error(run):
    code, _, err = run("merge-lora", "a", "b", "c")
    assert code == 2
    assert "--scale" in err


def test_a_mistake_of_ours_keeps_its_traceback(run, monkeypatch):
    def broken(*_, **__):
        raise AssertionError("an invariant")

    monkeypatch.setattr("pusa.lora.merge_lora", broken)
    with pytest.raises(AssertionError, match="an invariant"):
        run("merge-lora", "a", "b", "c", "--scale", 1)


def test_uncached_prompts_are_a_user_error(run, tmp_path, suite, model):
    from pusa.cache import cache_prompts

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
    code, _, err = run("score", suite, tmp_path / "scores.csv", *shards, *SIDES)
    assert code == 0, err
    table = pd.read_csv(tmp_path / "scores.csv")
    assert set(table["index"]) == {0, 2, 4}
    assert {"camera_motion", "i2v_subject", "i2v_background"} < set(table["dimension"])
    assert table["value"].notna().all()


def test_more_shards_than_prompts(run, sample, tmp_path, suite):
    shards = [tmp_path / f"shard{i}.csv" for i in range(4)]
    for i, shard in enumerate(shards):
        assert sample(shard, "--shard", i, "--shards", 4)[0] == 0
    code, _, err = run("score", suite, tmp_path / "scores.csv", *shards, *SIDES)
    assert code == 0, err


def test_cache_prompts_takes_the_negative_prompt_from_a_file(run, tmp_path, suite, model):
    from pusa.cache import PromptCache

    (tmp_path / "negative.txt").write_text("blue dots\n")
    code, _, err = run(
        "cache-prompts", suite, model, tmp_path / "p.safetensors", *SIDES, "--text-tokens", 20,
        "--negative-prompt-file", tmp_path / "negative.txt",
    )  # fmt: skip
    assert code == 0, err
    assert PromptCache(tmp_path / "p.safetensors").negative_prompt == "blue dots"
