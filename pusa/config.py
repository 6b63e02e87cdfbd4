"""Checks of the workflow's configuration that end in one clear sentence."""

import copy
import math
from pathlib import Path

import jsonschema
import yaml

from pusa.clip import count_latent_frames


def check_config(config: dict, schema: str | Path) -> None:
    """Check a configuration against its schema and the rules between keys; fill in defaults.

    Raises:
        ValueError: that names the key's path, what was found and what was expected.
    """
    rules = yaml.safe_load(Path(schema).read_text())
    validator = jsonschema.Draft202012Validator(rules)
    errors = sorted(validator.iter_errors(config), key=lambda e: list(map(str, e.absolute_path)))
    if errors:
        raise ValueError(_sentence(errors[0]))
    _fill_defaults(config, rules)
    try:
        count_latent_frames(config["clip"]["frames"])
    except ValueError as error:
        raise ValueError(f"config key clip.frames: {error}") from None
    train = config["train"]
    if train["iterations"] != sorted(train["iterations"]):
        raise ValueError(
            f"config key train.iterations: found {train['iterations']}, expected rising order"
        )
    total, processes = train["total_batch"], train["processes"]
    micro = train.setdefault("micro_batch", max(1, total // processes))
    if total % (processes * micro):
        raise ValueError(
            f"config key train.total_batch: found {total}, expected a multiple of "
            f"train.processes {processes} x train.micro_batch {micro}"
        )
    if config["dataset"].get("clips", math.inf) <= train["validation_clips"]:
        raise ValueError(
            f"config key dataset.clips: found {config['dataset']['clips']}, expected more than "
            f"train.validation_clips, {train['validation_clips']}"
        )


def _fill_defaults(config: dict, rules: dict) -> None:
    for key, rule in rules.get("properties", {}).items():
        if "default" in rule:
            config.setdefault(key, copy.deepcopy(rule["default"]))
        if isinstance(config.get(key), dict):
            _fill_defaults(config[key], rule)


def _sentence(error: jsonschema.ValidationError) -> str:
    path = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        allowed = ", ".join(sorted(error.schema.get("properties", {})))
        unknown = sorted(set(error.instance) - set(error.schema.get("properties", {})))
        where = ".".join(filter(None, [path, unknown[0]]))
        return f"config key {where} is unknown; expected one of {allowed}"
    if error.validator == "required":
        missing = error.message.split("'")[1]
        return f"config key {'.'.join(filter(None, [path, missing]))} is missing"
    expected = {
        "type": "a value of type {}",
        "enum": "one of {}",
        "minimum": "at least {}",
        "maximum": "at most {}",
        "exclusiveMinimum": "more than {}",
        "multipleOf": "a multiple of {}",
        "minItems": "at least {} items",
        "minLength": "at least {} characters",
        "minProperties": "at least {} entries",
        "pattern": "a name that matches {}",
        "uniqueItems": "no value twice",
    }.get(error.validator, error.message)
    value = error.validator_value
    value = ", ".join(map(str, value)) if isinstance(value, list) else value
    return f"config key {path}: found {error.instance!r}, expected {expected.format(value)}"
