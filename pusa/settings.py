"""Typed settings: a field is written once, with its type, default, limits and help.

From a model of settings come the check of a configuration, the options of a command
(`pusa.cli.options`) and the table in ``config/README.md``. An error is one sentence that names the
key, what was found and what was expected.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

#: How pydantic's words are shortened.
_WORDS = {
    "Input should be ": "",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid ": "a ",
    "String should have ": "text of ",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
}


class Settings(BaseModel):
    """A section of settings; the text under a field is its help."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        # A field that only has another default keeps its help.
        for name, field in cls.model_fields.items():
            for base in cls.__mro__[1:]:
                if field.description is None and name in getattr(base, "model_fields", {}):
                    field.description = base.model_fields[name].description

    @classmethod
    def read(cls, values: Mapping[str, Any], *, name: Callable[[str], str] = str) -> Self:
        """Check values and fill in defaults.

        Args:
            name: how a key such as ``train.seed`` is called in an error.

        Raises:
            ValueError: one sentence on the first value that is wrong.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            # A misspelt key is missing too.
            found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
            raise ValueError(_sentence(found[0], cls, name)) from None

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The fields that need not be given, as they are then."""
        fields = cls.model_fields.items()
        return {key: field.default for key, field in fields if not field.is_required()}

    def part(self, kind: type["Settings"], **changes: Any) -> "Settings":
        """The fields that this section shares with another kind of section, and ``changes``."""
        shared = kind.model_fields.keys() & type(self).model_fields.keys()
        return kind.read({**self.model_dump(include=shared), **changes})


def section_of(field: FieldInfo) -> type[Settings] | None:
    """The kind of section that a field holds, if it does; None for a plain value."""
    kinds = get_args(field.annotation) or (field.annotation,)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Settings)), None)


def _sentence(error: Mapping[str, Any], model: type[Settings], name: Callable[[str], str]) -> str:
    path = [str(part) for part in error["loc"] if part != "[key]"]
    key, found = ".".join(path), error["input"]
    match error["type"]:
        case "missing":
            return f"{name(key)} is missing"
        case "extra_forbidden":
            allowed = sorted(_inside(model, path[:-1]).model_fields)
            return f"{name(key)} is unknown; expected one of {', '.join(allowed)}"
        case "model_type":
            return f"{name(key)}: found {found!r}, expected a section with keys"
        case "too_short":
            least = error["ctx"]["min_length"]
            return f"{name(key)}: found {found!r}, expected at least {least} of them"
        case "value_error":  # of a check of ours, which names the key and what was found
            told, _, rest = str(error["ctx"]["error"]).partition(": ")
            return f"{name('.'.join([*path, told]))}: {rest}"
    if isinstance(found, str) and error["type"] == "float_type":
        hint = "without quotes"
        if re.fullmatch(r"\d+e[+-]?\d+", found, re.IGNORECASE):
            hint = f"with a point in it, as YAML wants: {float(found):.1e}"
        return f"{name(key)}: found the text {found!r}, expected a number, {hint}"
    expected = error["msg"]
    for long, short in _WORDS.items():
        expected = expected.replace(long, short)
    return f"{name(key)}: found {found!r}, expected {expected}"


def _inside(model: type[Settings], path: list[str]) -> type[Settings]:
    """The kind of section that lies at a path; entries of a dictionary are all of one kind."""
    for key in path:
        if key in model.model_fields:
            field = model.model_fields[key]
            inner = section_of(field)
            if inner is None and get_origin(field.annotation) is dict:
                inner = get_args(field.annotation)[1]
            model = inner or model
    return model
