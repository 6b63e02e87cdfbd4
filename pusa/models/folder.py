"""The files of a model folder in diffusers' format: what must be there, and where weights are."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt

from pusa.digests import digest_files, digest_folder
from pusa.settings import Settings

WEIGHTS = "diffusion_pytorch_model"
#: Beside the transformer, which may come from elsewhere.
PARTS = (
    "model_index.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
)
#: What a folder is expected to be, in words.
TEXT_TO_VIDEO = (
    "a text-to-video model in diffusers' format, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
)
IMAGE_TO_VIDEO = (
    "an image-to-video model in diffusers' format, such as Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
)


class _Part(Settings):
    """What is read of a part's ``config.json`` before the part is loaded."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore")


class _Transformer(_Part):
    class_name: Literal["WanTransformer3DModel", "VTAWanTransformer3DModel"] = Field(
        alias="_class_name"
    )
    patch_size: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    in_channels: PositiveInt
    out_channels: PositiveInt
    num_attention_heads: PositiveInt
    attention_head_dim: PositiveInt
    num_layers: Annotated[int, Field(ge=1, le=1000)]  # all are built before weights are looked at
    ffn_dim: PositiveInt
    text_dim: PositiveInt
    eps: PositiveFloat = 1e-6
    rope_max_seq_len: PositiveInt = 1024


class _Vae(_Part):
    class_name: Literal["AutoencoderKLWan"] = Field(alias="_class_name")
    z_dim: PositiveInt
    latents_mean: list[float]
    latents_std: list[PositiveFloat]
    scale_factor_spatial: PositiveInt = 8  # Wan2.1's config is older than the key


class _TextEncoder(_Part):
    model_type: Literal["umt5"]
    d_model: PositiveInt


_KINDS = {"transformer": _Transformer, "vae": _Vae, "text_encoder": _TextEncoder}


def check_model_folder(model: str | Path) -> None:
    """Check that a text-to-video model folder is complete.

    Raises:
        FileNotFoundError: that names the folder and what it lacks.
        ValueError: if a part's config is of another part, or not one.
    """
    try:
        require_files(model, ["transformer/config.json", *PARTS])
        weight_files(Path(model) / "transformer")
        for part in ("vae", "text_encoder"):
            if not any(file.is_file() for file in (Path(model) / part).glob("*.safetensors")):
                raise FileNotFoundError(
                    f"model folder {model} has no safetensors weights in {part}"
                )
        for kind in ("transformer", "vae", "text_encoder"):
            read_part(Path(model) / kind, kind)
    except FileNotFoundError as error:
        record = Path(model) / "download.json"
        hint = f"; delete {record} to have it downloaded again" if record.exists() else ""
        raise FileNotFoundError(f"{error}{hint}") from None


def check_baseline_folder(folder: str | Path) -> None:
    """Check that a folder holds an image-to-video model for diffusers' own pipeline.

    Raises:
        FileNotFoundError: that names the folder and what it lacks.
        ValueError: if the model is of another pipeline, or has a second expert.
    """
    require_files(folder, ["model_index.json"], IMAGE_TO_VIDEO)
    index = read_json(Path(folder) / "model_index.json")
    if index.get("_class_name") != "WanImageToVideoPipeline":
        raise ValueError(
            f"model folder {folder} is of a {index.get('_class_name')}, expected a "
            "WanImageToVideoPipeline; a text-to-video model is sampled with a transformer folder, "
            "its own or a merged one"
        )
    if has_part(folder, "transformer_2"):
        raise ValueError(
            f"model folder {folder} has two experts, as Wan2.2-I2V, expected one as Wan2.1-I2V"
        )
    image_encoder = ["image_encoder/config.json"] if has_part(folder, "image_encoder") else []
    parts = ["transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
    require_files(folder, [*parts, *image_encoder], IMAGE_TO_VIDEO)
    weight_files(Path(folder) / "transformer")


def has_part(model: str | Path, part: str) -> bool:
    """Whether a model folder has an optional part, by its ``model_index.json``.

    Raises:
        ValueError: if what stands there is not a library and a class, or two nulls.
    """
    index = Path(model) / "model_index.json"
    named = read_json(index).get(part, [None, None])
    if not isinstance(named, list) or [type(n) for n in named] not in ([str] * 2, [type(None)] * 2):
        raise ValueError(f"{index}: {part} is {named!r}, expected a library and a class")
    return named[0] is not None


def check_rank(rank: int, transformer: str | Path) -> None:
    """Check that a LoRA of this rank is smaller than the layers of a transformer folder.

    Raises:
        ValueError: if it is not.
    """
    config = read_part(transformer, "transformer")
    smallest = min(config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"])
    if rank > smallest:
        raise ValueError(
            f"rank: found {rank}, expected at most {smallest}, the smallest dimension of the "
            f"layers of {transformer} that a LoRA is trained for"
        )


def read_part(
    folder: str | Path, kind: Literal["transformer", "vae", "text_encoder"]
) -> dict[str, Any]:
    """``config.json`` of one part of a model.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is of another kind of part, or lacks what every such part has; it names
            the file and the key.
    """
    require_files(folder, ["config.json"])
    file = Path(folder) / "config.json"
    config = read_json(file)
    _KINDS[kind].read(config, name=lambda key: f"{file}: {key}")
    return config


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        ValueError: if there is none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, expected a JSON object")
    return found


@contextmanager
def loading(folder: str | Path) -> Iterator[None]:
    """Say in one sentence what a library raises for a part that it cannot load.

    Raises:
        ValueError: that names the folder. What diffusers, transformers and safetensors raise has no
            class in common, and seldom names a file.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if "out of memory" in str(error):
            raise
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{folder} cannot be loaded: {told[0].rstrip('.:')}; expected a whole part of a model"
        ) from error


def require_files(folder: str | Path, names: list[str], expected: str = TEXT_TO_VIDEO) -> None:
    """Raise `FileNotFoundError` that lists which files a model folder lacks."""
    folder = Path(folder)
    if not folder.is_dir():
        hint = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):  # as the hub's repositories are called
            hint = (
                f"; if it is a repository of the hub, `pusa download {folder} models/{folder.name} "
                f"--kind model` makes models/{folder.name}"
            )
        raise FileNotFoundError(f"model folder {folder} does not exist{hint}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"model folder {folder} lacks {', '.join(missing)}; expected {expected}"
        )


def weight_files(transformer: str | Path) -> list[Path]:
    """The safetensors files of a transformer folder, one or several shards, sorted.

    Raises:
        FileNotFoundError: if there are none, or the index lists one that is missing.
        ValueError: if the index is not one.
    """
    transformer = Path(transformer)
    index = transformer / f"{WEIGHTS}.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is damaged, expected JSON with a weight_map") from None
    else:
        names = [f"{WEIGHTS}.safetensors"]
    require_files(transformer, names)
    return [transformer / name for name in names]


def digest_weights(transformer: str | Path) -> str:
    """SHA-256 of what a transformer folder computes: its ``config.json`` and weight files.

    A copy in another floating-point type, or cut into other shards, has other files, and another
    digest.

    Raises:
        FileNotFoundError, ValueError: as `weight_files`.
    """
    files = weight_files(transformer)
    require_files(transformer, ["config.json"])
    return digest_files([Path(transformer) / "config.json", *files])


def digest_text_encoder(model: str | Path) -> str:
    """SHA-256 of the files of ``tokenizer/`` and ``text_encoder/`` of a model folder."""
    digests = (digest_folder(Path(model) / part) for part in ("tokenizer", "text_encoder"))
    return sha256(" ".join(digests).encode()).hexdigest()


def require_complete(folder: str | Path, found: Mapping[str, Any]) -> None:
    """Refuse weights that lack a tensor, for which libraries would take random numbers.

    Args:
        found: what ``from_pretrained(..., output_loading_info=True)`` tells.

    Raises:
        ValueError: that names a tensor.
    """
    for key, what in (("missing_keys", "lack"), ("mismatched_keys", "have another shape of")):
        if tensors := sorted(map(str, found.get(key) or ())):
            raise ValueError(
                f"{folder}: its weights {what} {len(tensors)} tensors of the model, such as "
                f"{tensors[0]}; expected a whole model"
            )
