"""The command line's app; and how typed settings become its options."""

import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from pusa import __version__
from pusa.driver import explain_no_gpu, find_driver
from pusa.settings import Settings, section_of

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pusa {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version."),
    ] = False,
) -> None:
    """Pusa V1.0: image-to-video by vectorized timestep adaptation."""


Manifests = Annotated[list[Path], typer.Argument(help="Lists of videos, beside them.")]
Device = Annotated[
    Literal["cuda", "cpu"] | None, typer.Option(help="Where models run; a GPU if there is one.")
]


def takes_settings(function: Callable) -> Callable:
    """Let a command be called with an option for every field of its settings.

    A parameter ``clip: Clip`` becomes ``--frames``, ``--height`` and so on; and ``--clip``, by
    which a rule hands over a whole section as JSON. An option that is given counts more.
    ``Clip | None`` is None where nothing is given.
    """
    signature = inspect.signature(function)
    kinds: dict[str, type[Settings]] = {}
    options, others = [], []
    for parameter in signature.parameters.values():
        kind = section_of(parameter)
        if kind is None:
            others.append(parameter)
            continue
        kinds[parameter.name] = kind
        options.append(_option(parameter.name, str, hidden=True))
        for name, field in kind.model_fields.items():
            options.append(_option(name, field.annotation, help=_describe(field)))

    @wraps(function)
    def command(**given: Any) -> Any:
        for name, kind in kinds.items():
            section = given.pop(name)
            values = {key: given.pop(key) for key in kind.model_fields}
            values = {key: value for key, value in values.items() if value not in (None, [])}
            if section is None and not values and signature.parameters[name].default is None:
                given[name] = None
                continue
            values = _read_section(name, section) | values
            given[name] = kind.read(values, name=lambda key: f"--{key.replace('_', '-')}")
        return function(**given)

    command.__signature__ = signature.replace(parameters=[*others, *options])
    return command


def _describe(field: FieldInfo) -> str:
    """A field's help, with its default; typer would put the default into brackets."""
    text = " ".join((field.description or "").replace("`", "").split())
    if field.is_required():
        return f"{text} [required]"
    return text if field.default in (None, "", []) else f"{text} [default: {field.default}]"


def _read_section(name: str, text: str | None) -> dict[str, Any]:
    try:
        section = json.loads(text or "{}")
    except json.JSONDecodeError:
        section = None
    if not isinstance(section, dict):
        raise ValueError(f"--{name.replace('_', '-')}: found {text!r}, expected a JSON object")
    return section


def _option(name: str, kind: Any, **shown: Any) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    if get_origin(kind) in (Union, UnionType):  # with None, and perhaps with limits
        kind = next(k for k in get_args(kind) if k is not NoneType)
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    flags = [f"{flag}/--no{flag[1:]}"] if kind is bool else [flag]
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            Union[kind, None],  # noqa: UP007
            typer.Option(*flags, show_default=False, **shown),
        ],
    )


def choose_device(wanted: str | None) -> str:
    """`cuda` or `cpu`; called before anything else imports torch.

    Raises:
        ValueError: if a GPU is wanted and PyTorch finds none; it says why.
    """
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before PyTorch looks for them
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and found == "cpu":
        why = explain_no_gpu(torch.__version__, torch.version.cuda, find_driver())
        raise ValueError(f"--device cuda: {why}")
    return found


def tell_warnings_once() -> None:
    """Print warnings as one line; Python's own "once" is forgotten when a library sets filters."""
    told = set()

    def tell(message, *_) -> None:
        if str(message) not in told:
            print(f"warning: {message}", file=sys.stderr)
        told.add(str(message))

    warnings.filterwarnings("always", category=UserWarning)
    warnings.showwarning = tell
