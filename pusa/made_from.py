"""What the results at hand were made from, compared with the models as they are now.

Snakemake tells by its time whether an input is another one, and a model is seldom as new as what
was made from it. So results say what they were made from, and every call compares.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pusa.data.manifest import read_manifests
from pusa.digests import digest_folder
from pusa.experiments import WAN_I2V, Setting
from pusa.layout import Layout
from pusa.models.folder import digest_text_encoder, digest_weights, read_json


def check_made_from(files: Layout) -> None:
    """Check that the models are those that the results at hand were made from.

    A part that is not there, deleted for its room or about to be downloaded, is not compared.

    Raises:
        ValueError: if a part is another one; it names the part and the result.
    """
    digest = cache(_digest)  # many results come from one part
    for result, model, parts in _results(files):
        for part, known in parts.items():
            if known and digest(model, part) not in (None, known):
                found = digest(model, part)
                name = part.replace("_", " ") + (" or tokenizer" if part == "text_encoder" else "")
                raise ValueError(
                    f"{result} was made from another {name} than that of {model}: expected SHA-256 "
                    f"{known[:12]}, found {found[:12]}; put the files back, or move {result} away "
                    "to have it made again"
                )


def _results(files: Layout) -> Iterator[tuple[str, str, dict[str, str | None]]]:
    """What was made, from which model, and the digests of that one's parts."""
    model = files.config.model.path
    for name in files.runs:
        run = files.trained(name)
        yield run, model, {"transformer": _read(Path(run, "run.json")).get("base")}
    index = files.path("cache/index.json")
    made = _read(Path(index)).get("made", {})
    yield index, model, {part: made.get(part) for part in ("vae", "text_encoder")}
    prompts = files.path("cache/prompts.safetensors")
    with suppress(OSError, SafetensorError), safe_open(prompts, "np") as embeds:
        made = embeds.metadata() or {}
        yield prompts, model, {"text_encoder": made.get("text_encoder")}
    for setting, manifest in _manifests(files):
        if setting.model == WAN_I2V and files.trains_baseline:
            continue  # made again whenever that is
        adapted = files.setting_transformer(setting) != files.transformer  # as a whole
        told = _read_first(manifest)
        parts = {part: told.get(part) for part in ("vae", "text_encoder")}
        if setting.model == WAN_I2V:
            parts |= {part: told.get(part) for part in ("scheduler", "image_encoder")}
            parts["transformer"] = told.get("baseline")
        elif not adapted:
            parts["transformer"] = told.get("transformer", {}).get("weights")
        yield str(manifest.parent), files.setting_model(setting), parts


def _manifests(files: Layout) -> Iterator[tuple[Setting, Path]]:
    """A list of videos of every setting and task that has one."""
    lists = [
        (setting, files.setting_manifests(study, name))
        for study, settings in files.settings.items()
        for name, setting in settings.items()
    ]
    lists += [(files.main, [files.task_manifest(task)]) for task in files.tasks]
    for setting, manifests in lists:
        made = [Path(manifest) for manifest in manifests if Path(manifest).is_file()]
        yield from ((setting, manifest) for manifest in made[:1])


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one if there is no whole one, as then its job runs again."""
    with suppress(OSError, ValueError):
        return read_json(file)
    return {}


def _read_first(manifest: Path) -> dict[str, Any]:
    """What the first video of a list says of itself; nothing if there is none that does."""
    from pusa.data.video import read_settings  # takes a video library along

    with suppress(OSError, ValueError):
        videos, folder = read_manifests([manifest])
        return read_settings(folder / videos["file"].iloc[0])
    return {}


def _digest(model: str, part: str) -> str | None:
    try:
        if part == "transformer":
            return digest_weights(Path(model) / part)
        if part == "text_encoder":
            return digest_text_encoder(model)
        return digest_folder(Path(model) / part)
    except FileNotFoundError:
        return None
