import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pusa import cli
from pusa.cli.generate import parse_lora, read_prompts
from pusa.clip import ClipSize
from pusa.data.video import read_settings, read_video, write_video
from pusa.models.lora import LoraInfo, save_lora
from pusa.models.text import load_tokenizer
from pusa.sample import generate, pipeline
from pusa.sample.conditioning import parse_placement
from pusa.sample.generate import GenerateSettings, Request, generate_videos, name_prompts

PROMPT = "a red circle moves slowly left over stripes, camera static"
SIZE = ClipSize(frames=9, height=64, width=64)
SETTINGS = GenerateSettings(size=SIZE, steps=2)


class FakePipeline:
    """Makes frames of one grey each, another for every call, and records the calls."""

    _execution_device = torch.device("cpu")

    def __init__(self, model):
        self.tokenizer = load_tokenizer(model)
        self.origin = {"model": "fake"}
        self.calls = []

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, prompt, **options):
        self.calls.append({"prompt": prompt, **options})
        frames = 20 * len(self.calls) + np.arange(9, dtype=np.uint8)
        return np.broadcast_to(frames[None, :, None, None, None], (1, 9, 64, 64, 3))


@pytest.fixture
def fake(model):
    return FakePipeline(model)


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels.repeat(16, 0).repeat(16, 1)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def greys(frames):
    return np.asarray(frames)[:, 0, 0, 0].tolist()


# Files, settings, resuming


def test_a_video_for_each_request_and_sample(fake, tmp_path):
    requests = [Request(name=name, prompt=f"a {name} wall") for name in ("red", "blue")]
    videos = generate_videos(fake, requests, SETTINGS, tmp_path / "out", samples=2)
    names = ["red-0", "red-1", "blue-0", "blue-1"]
    assert videos == [tmp_path / "out" / f"{name}.mp4" for name in names]
    called = [(call["prompt"], call["sample"]) for call in fake.calls]
    assert called == [(f"a {c} wall", n) for c in ("red", "blue") for n in (0, 1)]
    for number, video in enumerate(videos, start=1):
        expected = 20 * number + np.arange(9)
        assert np.abs(greys(read_video(video)) - expected).max() <= 2  # of the codec


def test_settings_are_in_the_file(fake, tmp_path, image):
    placements = (parse_placement(f"{image}@1:0.3"), parse_placement(f"{image}@9"))
    request = Request(name="loop", prompt=PROMPT, placements=placements)
    settings = replace(SETTINGS, guidance_scale=1.5, negative_prompt="dots", seed=7)
    found = read_settings(*generate_videos(fake, [request], settings, tmp_path))
    assert found["prompt"] == PROMPT
    assert (found["steps"], found["seed"], found["sample"]) == (2, 7, 0)
    assert (found["guidance_scale"], found["negative_prompt"]) == (1.5, "dots")
    assert found["size"] == {"frames": 9, "height": 64, "width": 64}
    assert found["given"] == [[1, 1, 0.3], [9, 9, 0.0]]
    assert [c["file"] for c in found["conditions"]] == ["image.png"] * 2
    assert found["model"] == "fake"
    assert set(found["made_with"]) == {"pusa", "device"}


def test_text_to_video_has_nothing_given(fake, tmp_path):
    videos = generate_videos(fake, [Request(name="a", prompt=PROMPT)], SETTINGS, tmp_path)
    assert read_settings(videos[0])["given"] == []


def test_settings_reach_the_model(fake, tmp_path, image):
    settings = GenerateSettings(
        size=SIZE,
        steps=3,
        shift=4.0,
        guidance_scale=2.0,
        guidance_scale_2=1.0,
        negative_prompt="dots",
        seed=5,
    )
    request = Request(name="a", prompt=PROMPT, placements=(parse_placement(f"{image}@9:0.5"),))
    generate_videos(fake, [request], settings, tmp_path)
    [call] = fake.calls
    [condition] = call.pop("conditions")
    assert (condition.latent_frames, condition.multipliers) == ((2,), (0.5,))
    assert call == {
        "prompt": PROMPT,
        "size": SIZE,
        "steps": 3,
        "shift": 4.0,
        "guidance_scale": 2.0,
        "guidance_scale_2": 1.0,
        "negative_prompt": "dots",
        "seed": 5,
        "sample": 0,
    }


def test_interrupted_run_goes_on(fake, tmp_path):
    requests = [Request(name=name, prompt=f"a {name} wall") for name in ("red", "blue", "dark")]
    videos = generate_videos(fake, requests, SETTINGS, tmp_path)
    videos[1].unlink()
    kept = {v: v.stat().st_mtime_ns for v in (videos[0], videos[2])}
    fake.calls.clear()
    generate_videos(fake, requests, SETTINGS, tmp_path)
    assert [call["prompt"] for call in fake.calls] == ["a blue wall"]
    assert kept == {v: v.stat().st_mtime_ns for v in kept}


def test_another_device_keeps_a_video(fake, tmp_path, monkeypatch):
    requests = [Request(name="a", prompt=PROMPT)]
    generate_videos(fake, requests, SETTINGS, tmp_path)
    monkeypatch.setattr(generate, "describe_device", lambda device: "another")
    generate_videos(fake, requests, SETTINGS, tmp_path)
    assert len(fake.calls) == 1


def test_output_of_other_settings_is_refused(fake, tmp_path):
    requests = [Request(name="new", prompt=PROMPT), Request(name="a", prompt=PROMPT)]
    generate_videos(fake, requests[1:], SETTINGS, tmp_path)
    fake.calls.clear()
    changed = replace(SETTINGS, steps=3, seed=1)
    with pytest.raises(
        FileExistsError, match=r"a\.mp4 exists already, made with other settings \(seed, steps"
    ):
        generate_videos(fake, requests, changed, tmp_path)
    assert not fake.calls  # not even for the first request, which is new
    generate_videos(fake, requests, changed, tmp_path, overwrite=True)
    assert read_settings(tmp_path / "a.mp4")["steps"] == 3


def test_image_of_another_content_is_other_settings(fake, tmp_path, image):
    request = Request(name="a", prompt=PROMPT, placements=(parse_placement(f"{image}@1"),))
    generate_videos(fake, [request], SETTINGS, tmp_path)
    Image.new("RGB", (80, 80), (255, 0, 0)).save(image)
    with pytest.raises(FileExistsError, match=r"made with other settings \(conditions\)"):
        generate_videos(fake, [request], SETTINGS, tmp_path)


def test_foreign_file_is_refused(fake, tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((3, 64, 64, 3), np.uint8))
    (tmp_path / "b.gif").touch()
    for name, message in (("a", r"a\.mp4 exists already and is not"), ("b", r"b\.gif exists alr")):
        with pytest.raises(FileExistsError, match=message):
            generate_videos(fake, [Request(name=name, prompt=PROMPT)], SETTINGS, tmp_path, gif=True)
    with pytest.raises(FileExistsError, match=r"a\.mp4 is a file, expected a folder"):
        generate_videos(fake, [Request(name="c", prompt=PROMPT)], SETTINGS, tmp_path / "a.mp4")


def test_two_requests_of_one_name_are_refused(fake, tmp_path):
    requests = [Request(name="a", prompt="a wall"), Request(name="a", prompt="a circle")]
    with pytest.raises(ValueError, match=r"two requests are to be written to .*a\.mp4"):
        generate_videos(fake, requests, SETTINGS, tmp_path)


def test_bad_request_stops_the_run_before_its_first_video(fake, tmp_path, image):
    good = Request(name="a", prompt=PROMPT)
    missing = Request(
        name="b", prompt=PROMPT, placements=(parse_placement(f"{tmp_path}/none.png@1"),)
    )
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        generate_videos(fake, [good, missing], SETTINGS, tmp_path)
    with pytest.raises(ValueError, match="prompt 2 of 2 is empty"):
        generate_videos(fake, [good, Request(name="b", prompt=" ")], SETTINGS, tmp_path)
    assert not fake.calls


def test_gif_and_frames(fake, tmp_path):
    requests = [Request(name="a", prompt=PROMPT)]
    generate_videos(fake, requests, SETTINGS, tmp_path, gif=True, png=True)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size) == (9, (64, 64))
    frames = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "a").glob("*.png"))]
    assert greys(frames) == list(range(20, 29))  # not through the codec


def test_copies_are_made_of_a_video_that_is_there(fake, tmp_path):
    requests = [Request(name="a", prompt=PROMPT)]
    generate_videos(fake, requests, SETTINGS, tmp_path)
    generate_videos(fake, requests, SETTINGS, tmp_path, gif=True, png=True)
    assert len(fake.calls) == 1
    assert (tmp_path / "a.gif").exists()
    assert len(list((tmp_path / "a").glob("*.png"))) == 9


@pytest.mark.parametrize("copies", [True, False])
def test_copies_of_a_replaced_video_are_removed(fake, tmp_path, monkeypatch, copies):
    """Also where the run ends before there are new ones."""
    requests = [Request(name="a", prompt=PROMPT)]
    generate_videos(fake, requests, SETTINGS, tmp_path, gif=True, png=True)
    (tmp_path / "a" / "notes.txt").touch()
    changed = replace(SETTINGS, steps=3)
    if copies:
        monkeypatch.setattr(generate, "_write_copies", None)
        with pytest.raises(TypeError):
            generate_videos(fake, requests, changed, tmp_path, gif=True, png=True, overwrite=True)
    else:
        generate_videos(fake, requests, changed, tmp_path, overwrite=True)
    assert read_settings(tmp_path / "a.mp4")["steps"] == 3
    assert not (tmp_path / "a.gif").exists()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("given", ["a.gif", "a.mp4", "a/frame_0001.png"])
def test_given_file_is_not_replaced(fake, tmp_path, given):
    generate_videos(
        fake, [Request(name="a", prompt=PROMPT)], SETTINGS, tmp_path, gif=True, png=True
    )
    before = (tmp_path / given).read_bytes()
    request = Request(
        name="a", prompt=PROMPT, placements=(parse_placement(f"{tmp_path}/{given}@1"),)
    )
    message = rf"{given} is given and would be replaced, expected another"
    with pytest.raises(ValueError, match=message):
        generate_videos(fake, [request], SETTINGS, tmp_path, overwrite=True)
    assert (tmp_path / given).read_bytes() == before


# Longer videos


def test_video_is_extended_from_its_own_end(fake, tmp_path):
    settings = replace(SETTINGS, length=16, overlap=5)
    request = Request(name="a", prompt=PROMPT)
    frames = generate.make_video(fake, request, settings)
    # Nine frames of the first call, then the last four of each further one; the last is cut.
    assert greys(frames) == [*range(20, 29), *range(45, 49), *range(65, 68)]
    assert [call["seed"] for call in fake.calls] == [0, 1, 2]
    assert not fake.calls[0]["conditions"]
    for call, expected in zip(fake.calls[1:], (range(24, 29), [28, *range(45, 49)]), strict=True):
        [condition] = call["conditions"]
        assert greys(condition.pixels) == [*expected]
        assert condition.latent_frames == (0, 1)
        assert condition.multipliers == (0.0, 0.0)


def test_long_video_is_resumed(fake, tmp_path):
    settings = replace(SETTINGS, length=13, overlap=5)
    requests = [Request(name="a", prompt=PROMPT)]
    for _ in range(2):
        [video] = generate_videos(fake, requests, settings, tmp_path, png=True)
    assert len(fake.calls) == 2
    assert len(read_video(video)) == 13


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": replace(SIZE, frames=10)}, r"must be of the form 4k\+1, found 10"),
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"shift": 0.0}, "shift must be a number above 0, found 0.0"),
        ({"shift": math.nan}, "shift must be a number above 0, found nan"),
        ({"shift": math.inf}, "shift must be a number above 0, found inf"),
        ({"guidance_scale": 0.5}, "guidance_scale must be a number from 1, found 0.5"),
        ({"guidance_scale": math.inf}, "guidance_scale must be a number from 1, found inf"),
        ({"guidance_scale_2": math.nan}, "guidance_scale_2 must be a number from 1, found nan"),
        ({"overlap": 12}, r"overlap: the number of frames must be of the form 4k\+1, found 12"),
        ({"length": 8}, "length is 8 frames, expected at least those of one window, 9"),
        ({"length": 20, "overlap": 4}, r"overlap: the number of frames must be of the form 4k\+1"),
        ({"length": 20, "overlap": 9}, "overlap is 9 frames, expected fewer than a window's 9"),
    ],
)
def test_bad_setting_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


# LoRAs that were not trained to be given frames


@pytest.mark.parametrize(
    ("vectorized", "given", "warned"),
    [(False, True, True), (False, False, False), (True, True, False), (None, True, False)],
)
def test_lora_of_one_timestep_per_clip_is_told(fake, tmp_path, image, vectorized, given, warned):
    fake.origin = {"transformer": {"loras": [{"file": "a.pt", "vectorized": vectorized}]}}
    placements = (parse_placement(f"{image}@1"),) if given else ()
    request = Request(name="a", prompt=PROMPT, placements=placements)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        generate_videos(fake, [request], SETTINGS, tmp_path)
    told = [w for w in caught if "a.pt was trained with one timestep per clip" in str(w.message)]
    assert bool(told) == warned


# The command


@pytest.fixture
def run(monkeypatch, capsys, model):
    """A function that runs ``pusa generate`` on the tiny model; exit code, stdout and stderr."""

    def call(*words, size=(9, 64, 64)):
        shape = [w for pair in zip(("--frames", "--height", "--width"), size) for w in pair]  # noqa: B905
        options = ["--model", model, "--steps", 1, "--dtype", "float32", *shape]
        monkeypatch.setattr(sys, "argv", ["pusa", "generate", *map(str, [*words, *options])])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


@pytest.fixture
def no_weights(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(pipeline, "load_pipeline", refuse)


def test_command_makes_videos_of_a_file_of_prompts(run, tmp_path, image):
    (tmp_path / "prompts.txt").write_text("a wall with dots\n\n  a red circle moves \n")
    out = tmp_path / "out"
    words = ("--prompts", tmp_path / "prompts.txt", "-o", out, "-c", f"{image}@1", "--gif")
    code, printed, _ = run(*words)
    assert code == 0
    names = ["a-wall-with-dots", "a-red-circle-moves"]
    assert printed.split() == [str(out / f"{name}.mp4") for name in names]
    for name in names:
        assert (out / f"{name}.gif").exists()
        assert read_settings(out / f"{name}.mp4")["given"] == [[1, 1, 0.0]]


def test_command_writes_one_file(run, tmp_path, model):
    layer = "blocks.0.attn1.to_q"
    tensors = {f"{layer}.lora_A.weight": torch.ones(1, 24)}
    tensors |= {f"{layer}.lora_B.weight": torch.ones(24, 1)}
    tensors |= {name.replace("blocks.0", "blocks.1"): t for name, t in tensors.items()}
    info = LoraInfo(
        rank=1,
        lora_alpha=1,
        targets=("attn1.to_q",),
        base=None,
        iteration=None,
        p_async=None,
        vectorized=None,
    )
    save_lora(tmp_path / "a.safetensors", tensors, info)
    out = tmp_path / "deep" / "x.mp4"
    words = (PROMPT, "-o", out, "--lora", f"{tmp_path}/a.safetensors:0.5", "--vae-tiling")
    code, printed, errors = run(*words, "--attention-backend", "native")
    assert code == 0, errors
    assert printed.split() == [str(out)]
    settings = read_settings(out)
    assert settings["transformer"]["loras"][0]["lora_scale"] == 0.5
    assert settings["dtype"] == "float32"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected prompts either on the command line or by --prompts, found neither"),
        (["a", "--prompts", "x.txt"], "by --prompts, found both"),
        (["--prompts", "none.txt"], "--prompts none.txt does not exist"),
        (["--prompts", "."], "--prompts . is a folder, expected a text file"),
        ([" "], "prompt 1 of 1 is empty"),
        (["a", "--negative-prompt", "red " * 20], "negative prompt has 21 tokens, at most 20"),
        (["a", "--shift", "nan"], "shift must be a number above 0, found nan"),
        (["a", "--guidance-scale", "0"], "guidance_scale must be a number from 1, found 0"),
        (["a", "--overlap", "12"], "overlap: the number of frames must be of the form 4k+1"),
        (["a", "-o", "x.WEBM"], "--out x.WEBM: videos are written as MP4, expected a folder or"),
        (["a", "-o", "x.gif"], "--out x.gif: videos are written as MP4"),
        (["red " * 20], "prompt has 21 tokens, at most 20 fit"),
        (["a", "b", "-o", "x.mp4"], "--out x.mp4 is one file, expected a folder for several"),
        (["a", "--samples", "2", "-o", "x.mp4"], "--out x.mp4 is one file"),
        (["a", "--lora", "x.pt:much"], "--lora x.pt:much: expected FILE or FILE:SCALE"),
        (["a", "--lora", "x.pt:2"], "LoRA x.pt does not exist"),
        (["a", "--lora-2", "x.pt"], "x.pt is given for the low-noise expert, but"),
        (["a", "--transformer", "none"], "model folder none does not exist"),
        (["a", "-c", "none.png@1"], "none.png"),
        (["a", "--length", "5"], "length is 5 frames"),
        (["a", "--offload", "model"], "--offload model moves weights to a GPU, but there is none"),
        (["a", "--attention-backend", "x"], "--attention-backend x: expected one of "),
        (["a", "--attention-backend", "flash"], "--attention-backend flash cannot be used: Flash"),
        (["a", "--context-parallel"], "expected a start by `torchrun"),
    ],
)
def test_bad_option_is_one_sentence(run, no_weights, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, errors = run(*words)
    assert code == 1
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.rglob("*.mp4"))


def test_size_is_checked_before_weights(run, no_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, errors = run("a", size=(9, 64, 60))
    assert (code, errors.startswith("error: width must be a multiple of 16")) == (1, True)


def test_existing_output_is_refused_before_weights(run, no_weights, tmp_path):
    write_video(tmp_path / "x.mp4", np.zeros((3, 64, 64, 3), np.uint8))
    code, _, errors = run("a", "-o", tmp_path / "x.mp4")
    assert code == 1
    assert "x.mp4 exists already" in errors


def test_nothing_is_loaded_for_what_is_there(run, tmp_path, monkeypatch):
    words = ("a wall", "-o", tmp_path, "--png")
    first = run(*words)
    monkeypatch.setattr(pipeline, "load_pipeline", None)
    assert run(*words)[:2] == first[:2] == (0, f"{tmp_path}/a-wall.mp4\n")


def test_contact_sheet(run, tmp_path, image):
    words = ("a wall", "-c", f"{image}@1", "--contact-sheet", "-o")
    for out, name in ((tmp_path / "out", "contact_sheet"), (tmp_path / "x.mp4", "x_contact_sheet")):
        code, printed, _ = run(*words, out)
        assert code == 0
        sheet = Path(printed.split()[-1])
        assert sheet.name == f"{name}.png"
        with Image.open(sheet) as picture:
            assert min(picture.size) > 100


def test_contact_sheet_is_not_overwritten(run, no_weights, tmp_path):
    (tmp_path / "contact_sheet.png").write_text("mine")
    code, _, errors = run("a wall", "--contact-sheet", "-o", tmp_path)
    assert code == 1
    assert "contact_sheet.png exists already, expected --overwrite" in errors
    assert (tmp_path / "contact_sheet.png").read_text() == "mine"


def test_suffix_in_capitals(run, tmp_path):
    code, printed, _ = run("a wall", "-o", tmp_path / "x.MP4")
    assert (code, printed) == (0, f"{tmp_path}/x.mp4\n")


def test_warnings_are_told_once(run, tmp_path, monkeypatch):
    """A clip of 25 frames per second, which is read several times."""
    load = pipeline.load_pipeline

    def load_with_other_filters(*args, **kwargs):
        with warnings.catch_warnings():  # as a library does; Python then forgets what it told
            warnings.filterwarnings("ignore", "something")
            return load(*args, **kwargs)

    monkeypatch.setattr(pipeline, "load_pipeline", load_with_other_filters)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height = stream.width = 64
        for _ in range(9):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    code, _, errors = run("a wall", "-c", f"{tmp_path}/clip.mp4@1-5", "-o", tmp_path / "x.mp4")
    assert code == 0
    assert errors.count("warning: ") == errors.count("25 frames per second") == 1


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffone\n\n  two words \r\n", encoding="utf-8")
    assert read_prompts(None, file) == ["one", "two words"]
    file.write_text("a\u2028b\x0bc\x85d\re", encoding="utf-8")
    assert read_prompts(None, file) == ["a\u2028b\x0bc\x85d", "e"]
    file.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts\.txt is not UTF-8 text, expected one prompt"):
        read_prompts(None, file)
    file.write_text("\n \n")
    with pytest.raises(ValueError, match=r"prompts\.txt is empty, expected one prompt per line"):
        read_prompts(None, file)


def test_lora_and_scale(tmp_path):
    assert parse_lora("--lora", "a.pt") == (Path("a.pt"), 1.0)
    assert parse_lora("--lora", "b/a.pt:1.4") == (Path("b/a.pt"), 1.4)
    assert parse_lora("--lora", "a.pt:-2") == (Path("a.pt"), -2.0)
    (tmp_path / "a:2").touch()
    assert parse_lora("--lora", f"{tmp_path}/a:2") == (tmp_path / "a:2", 1.0)


def test_names_of_prompts():
    long = "a very long prompt about nothing that goes on and on"
    prompts = ["A cat, running!", "a cat (running)", "A cat, running!", "???", "猫が走る", long]
    assert name_prompts(prompts) == {
        "A cat, running!": "a-cat-running",
        "a cat (running)": "a-cat-running-2",
        "???": "video",
        "猫が走る": "猫が走る",
        long: "a-very-long-prompt-about-nothing-that-go",
    }


def test_two_processes_make_one_video(model, tmp_path):
    """The same video, to the codec's rounding, with each process holding half of the tokens."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [PROMPT, "--model", str(model), "--steps", "2", "--frames", "9", "--height", "64"]
    words += ["--width", "64", "--dtype", "float32", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for launch, name in (([sys.executable], "one"), (command, "two")):
        words_here = [*words, "-o", str(tmp_path / f"{name}.mp4")]
        words_here += ["--context-parallel"] if name == "two" else []
        done = subprocess.run(
            [*launch, "-m", "pusa", "generate", *words_here],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.split() == [str(tmp_path / f"{name}.mp4")]
    one, two = (read_video(tmp_path / f"{name}.mp4").astype(int) for name in ("one", "two"))
    assert np.abs(one - two).max() <= 3
    settings = [read_settings(tmp_path / f"{name}.mp4") for name in ("one", "two")]
    assert json.dumps(settings[0]) == json.dumps(settings[1])
