import os
import subprocess
import sys
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pusa import cli
from pusa.config import GenerateSettings, Outputs, Switches, Weights
from pusa.data.video import read_settings, read_video
from pusa.sample import generate as module
from pusa.sample.conditioning import parse_placement
from pusa.sample.generate import generate, make_video, read_prompts, request_videos
from pusa.sample.loop import Request

PROMPT = "a red circle moves slowly left over stripes, camera static"
SETTINGS = GenerateSettings(frames=9, height=64, width=64, steps=2)


class FakePipeline:
    """Makes frames of one grey each, another for every call, and records the calls."""

    transformer = transformer_2 = None

    def __init__(self):
        self.calls = []

    def set_progress_bar_config(self, **_):
        pass

    def sample_frames(self, prompts, settings, *, embed, samples, **options):
        del embed
        one = {"prompt": prompts[0], "sample": samples[0]}
        self.calls.append({**one, "settings": settings, **options})
        frames = 20 * len(self.calls) + np.arange(9, dtype=np.uint8)
        return np.broadcast_to(frames[None, :, None, None, None], (1, 9, 64, 64, 3))


@pytest.fixture
def fake(monkeypatch):
    pipeline = FakePipeline()
    monkeypatch.setattr(module, "load_pipeline", lambda *_: pipeline)
    monkeypatch.setattr(module, "sample_frames", FakePipeline.sample_frames)
    monkeypatch.setattr(module, "prompt_encoder", lambda _: None)
    return pipeline


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(module, "load_pipeline", lambda *_: pytest.fail("weights were loaded"))


@pytest.fixture
def write(model, tmp_path):
    """A function that generates the videos of some prompts, by default of one."""

    def call(*prompts, given=(), settings=SETTINGS, samples=1, out=tmp_path / "out", **options):
        placements = tuple(parse_placement(text) for text in given)
        requests = request_videos(prompts or [PROMPT], placements, samples)
        chosen = {
            "weights": Weights(),
            "outputs": Outputs(),
            "switches": Switches(),
            "model": model,
        }
        return generate(requests, settings, out=out, device="cpu", **chosen | options)

    return call


def greys(frames):
    return np.asarray(frames)[:, 0, 0, 0].tolist()


def test_a_video_for_each_prompt_and_sample(fake, write, tmp_path, media):
    videos = write("a red wall", "a blue wall", given=[f"{media['image']}@9:0.5"], samples=2)
    names = ["a-red-wall-0", "a-red-wall-1", "a-blue-wall-0", "a-blue-wall-1"]
    assert videos == [tmp_path / "out" / f"{name}.mp4" for name in names]
    called = [(call["prompt"], call["sample"]) for call in fake.calls]
    assert called == [(f"a {c} wall", n) for c in ("red", "blue") for n in (0, 1)]
    for call in fake.calls:
        [condition] = call["conditions"]
        assert (condition.latent_frames, condition.multipliers) == ((2,), (0.5,))
    assert read_settings(videos[3])["given"] == [[9, 9, 0.5]]


def test_settings_reach_the_model(fake, write, pair):
    changes = {"shift": 4.0, "guidance_scale": 2.0, "negative_prompt": "dots", "seed": 5}
    settings = SETTINGS.part(GenerateSettings, guidance_scale_2=1.0, **changes)
    write(settings=settings, model=pair)
    [call] = fake.calls
    expected = settings.model_dump(exclude={"guidance_scale_2", "length", "overlap"})
    assert call["settings"].model_dump() == expected
    assert call["guidance_scale_2"] == 1.0


def test_single_video_is_written_to_a_file(fake, write, tmp_path):
    assert write(out=tmp_path / "deep" / "x.MP4") == [tmp_path / "deep" / "x.mp4"]


def test_names_of_files():
    long = "a very long prompt about nothing that goes on and on"
    prompts = ["A cat, running!", "a cat (running)", "A cat, running!", "???", "猫が走る", long]
    named = {request.prompt: request.name for request in request_videos(prompts, (), 1)}
    assert named == {
        "A cat, running!": "a-cat-running",
        "a cat (running)": "a-cat-running-2",
        "???": "video",
        "猫が走る": "猫が走る",
        long: "a-very-long-prompt-about-nothing-that-go",
    }


def test_contact_sheet(fake, write, tmp_path):
    """Not written over another file, but anew where all videos are there."""
    outputs = Outputs(contact_sheet=True)
    (tmp_path / "x_contact_sheet.png").touch()
    with pytest.raises(
        FileExistsError, match=r"x_contact_sheet\.png exists already, expected --ov"
    ):
        write(out=tmp_path / "x.mp4", outputs=outputs)
    for _ in range(2):
        _, sheet = write(outputs=outputs)
    assert len(fake.calls) == 1
    assert sheet == tmp_path / "out" / "contact_sheet.png"
    with Image.open(sheet) as picture:
        assert min(picture.size) > 100


# Longer videos


def test_video_is_extended_from_its_own_end(fake):
    settings = SETTINGS.part(GenerateSettings, length=16, overlap=5)
    frames = make_video(fake, Request(name="a", prompt=PROMPT), settings, embed=None)
    # Nine frames of the first call, then the last four of each further one; the last is cut.
    assert greys(frames) == [*range(20, 29), *range(45, 49), *range(65, 68)]
    assert [call["settings"].seed for call in fake.calls] == [0, 1, 2]
    assert not fake.calls[0]["conditions"]
    for call, expected in zip(fake.calls[1:], (range(24, 29), [28, *range(45, 49)]), strict=True):
        [condition] = call["conditions"]
        assert greys(condition.pixels) == [*expected]
        assert condition.latent_frames == (0, 1)
        assert condition.multipliers == (0.0, 0.0)


def test_long_video_is_kept(fake, write):
    settings = SETTINGS.part(GenerateSettings, length=13, overlap=5)
    for _ in range(2):
        [video] = write(settings=settings, outputs=Outputs(png=True))
    assert len(fake.calls) == 2
    assert len(read_video(video)) == 13


# LoRAs that were not trained to be given frames


@pytest.mark.parametrize(
    ("vectorized", "given", "warned"),
    [(False, True, True), (False, False, False), (True, True, False), (None, True, False)],
)
def test_lora_of_one_timestep_per_clip_is_told(
    fake, write, write_lora, tmp_path, media, vectorized, given, warned
):
    lora = write_lora(tmp_path / "a.pt.safetensors", vectorized=vectorized)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write(given=[f"{media['image']}@1"] if given else [], weights=Weights(lora=[lora]))
    told = [w for w in caught if "was trained with one timestep per clip" in str(w.message)]
    assert bool(told) == warned


# What is refused, before weights are loaded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "prompt 1 of 1 is empty"),
        ({"prompt": "red " * 20}, "prompt has 21 tokens, at most 20 fit"),
        ({"settings": {"negative_prompt": "red " * 20}}, "negative prompt has 21 tokens, at most"),
        ({"settings": {"width": 60}}, "width must be a multiple of 16"),
        ({"out": "x.WEBM"}, r"--out x\.WEBM: videos are written as MP4, expected a folder or"),
        (
            {"out": "x.mp4", "samples": 2},
            r"--out x\.mp4 is one file, expected a folder for several",
        ),
        ({"weights": {"lora": ["x.pt:2"]}}, r"LoRA x\.pt does not exist"),
        ({"weights": {"transformer": "none"}}, "model folder none does not exist"),
        ({"given": ["none.png@1"]}, r"none\.png does not exist"),
        ({"settings": {"guidance_scale_2": 2.0}}, "guidance_scale_2 is 2, but .* no transformer_2"),
        (
            {"switches": {"offload": "model"}},
            "--offload model moves weights to a GPU, but there is",
        ),
        ({"switches": {"attention_backend": "flash"}}, "flash cannot be used: Flash"),
        ({"switches": {"context_parallel": True}}, "expected a start by `torchrun"),
    ],
)
def test_what_cannot_be_used(write, no_weights, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    kinds = {"weights": Weights, "switches": Switches}
    made = {key: kinds[key](**value) for key, value in options.items() if key in kinds}
    settings = SETTINGS.part(GenerateSettings, **options.pop("settings", {}))
    prompt = options.pop("prompt", PROMPT)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write(prompt, settings=settings, **options | made)
    assert not list(tmp_path.rglob("*.mp4"))


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffone\n\n  two words \r\n", encoding="utf-8")
    assert read_prompts(None, file) == ["one", "two words"]
    file.write_text("a\u2028b\x0bc\x85d\re", encoding="utf-8")
    assert read_prompts(None, file) == ["a\u2028b\x0bc\x85d", "e"]
    assert read_prompts(["three"], None) == ["three"]
    for given, found in (([], "neither"), (["a"], "both")):
        with pytest.raises(ValueError, match=f"command line or by --prompts, found {found}"):
            read_prompts(given, file if given else None)
    with pytest.raises(FileNotFoundError, match=r"--prompts none\.txt does not exist"):
        read_prompts(None, Path("none.txt"))
    with pytest.raises(ValueError, match="is a folder, expected a text file"):
        read_prompts(None, tmp_path)
    file.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts\.txt is not UTF-8 text, expected one prompt"):
        read_prompts(None, file)
    file.write_text("\n \n")
    with pytest.raises(ValueError, match=r"prompts\.txt is empty, expected one prompt per line"):
        read_prompts(None, file)


# The command


@pytest.fixture
def run(monkeypatch, capsys, model):
    """A function that runs ``pusa generate`` on the tiny model; exit code, stdout and stderr."""

    def call(*words):
        options = ["--model", model, "--frames", 9, "--height", 64, "--width", 64, "--steps", 1]
        monkeypatch.setattr(sys, "argv", ["pusa", "generate", *map(str, [*options, *words])])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


def test_command_makes_videos_of_a_file_of_prompts(run, tmp_path, media, lora):
    (tmp_path / "prompts.txt").write_text("a wall with dots\n\n  a red circle moves \n")
    words = ["--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "out", "--gif"]
    words += ["-c", f"{media['image']}@1", "--lora", f"{lora}:0.5", "--dtype", "float32"]
    code, printed, errors = run(*words, "--vae-tiling", "--attention-backend", "native")
    assert code == 0, errors
    names = ["a-wall-with-dots", "a-red-circle-moves"]
    assert printed.split() == [str(tmp_path / "out" / f"{name}.mp4") for name in names]
    for name in names:
        assert (tmp_path / "out" / f"{name}.gif").exists()
        found = read_settings(tmp_path / "out" / f"{name}.mp4")
        assert (found["given"], found["dtype"]) == ([[1, 1, 0.0]], "float32")
        assert found["transformer"]["loras"][0]["lora_scale"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shift", "nan"], "--shift: found nan, expected a finite number"),
        (["--overlap", "12"], "--overlap: the number of frames must be of the form 4k+1"),
        (["--length", "5"], "--length: found 5 frames, expected at least those of one window, 9"),
        (["--lora", "x.pt:much"], "LoRA x.pt:much: expected FILE or FILE:SCALE"),
        (["-c", "cat.png"], "condition 'cat.png': expected FILE"),
    ],
)
def test_bad_option_is_one_sentence(run, words, message):
    code, _, errors = run("a", *words)
    assert code == 1
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_warnings_are_told_once(fake, run, tmp_path, monkeypatch):
    """A clip of 25 frames per second, which is read several times."""

    def load_with_other_filters(*_):
        with warnings.catch_warnings():  # as a library does; Python then forgets what it told
            warnings.filterwarnings("ignore", "something")
        return fake

    monkeypatch.setattr(module, "load_pipeline", load_with_other_filters)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height = stream.width = 64
        for _ in range(9):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with warnings.catch_warnings():
        code, _, errors = run("a wall", "-c", f"{tmp_path}/clip.mp4@1-5", "-o", tmp_path / "x.mp4")
    assert code == 0
    assert errors.count("warning: ") == errors.count("25 frames per second") == 1


@pytest.mark.slow
def test_two_processes_make_one_video(write, model, tmp_path):
    """The same video, to the codec's rounding, with each process holding half of the tokens."""
    settings = SETTINGS.model_copy(update={"guidance_scale": 3.0})  # which magnifies rounding
    [one], two = write(out=tmp_path / "one.mp4", settings=settings), tmp_path / "two.mp4"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["-m", "pusa", "generate", PROMPT, "--model", model, "--out", two, "--context-parallel"]
    words += ["--steps", 2, "--frames", 9, "--height", 64, "--width", 64]
    words += ["--guidance-scale", 3, "--dtype", "float32", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(two)]
    assert np.abs(read_video(one).astype(int) - read_video(two)).max() <= 3
    told = [read_settings(file) for file in (one, two)]
    assert told[1]["made_with"].pop("context_parallel")
    assert told[0] == told[1]
