"""Checks of the workflow's configuration that end in one clear sentence."""

import copy
import math
from pathlib import Path

import jsonschema
import yaml

from pusa.clip import count_latent_frames
from pusa.data.suite import KINDS, VBENCH_COUNTS, VBENCH_MIN_SIDE, count_prompts


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
    for side in ("height", "width"):
        if config["score"]["scorer"] == "vbench" and config["clip"][side] < VBENCH_MIN_SIDE:
            raise ValueError(
                f"config key clip.{side}: found {config['clip'][side]}, expected at least "
                f"{VBENCH_MIN_SIDE} with score.scorer vbench, which scores smaller clips wrong"
            )
    if config["lora"]["source"] == "released":
        return
    train = config["train"]
    if train["iterations"] != sorted(train["iterations"]):
        raise ValueError(
            f"config key train.iterations: found {train['iterations']}, expected rising order"
        )
    if not math.isfinite(train["learning_rate"]):
        raise ValueError(
            f"config key train.learning_rate: found {train['learning_rate']}, expected a number"
        )
    total, processes = train["total_batch"], train["nodes"] * train["processes"]
    micro = train.setdefault("micro_batch", max(1, total // processes))
    if total % (processes * micro):
        raise ValueError(
            f"config key train.total_batch: found {total}, expected a multiple of train.nodes "
            f"{train['nodes']} x train.processes {train['processes']} x train.micro_batch {micro}"
        )
    if config["dataset"].get("clips", math.inf) <= train["validation_clips"]:
        raise ValueError(
            f"config key dataset.clips: found {config['dataset']['clips']}, expected more than "
            f"train.validation_clips, {train['validation_clips']}"
        )


def prompt_counts(config: dict) -> dict[str, dict[str, int]]:
    """Prompts of each kind: ``all`` of the suite, in the ``subset``, and for the ``effects``.

    Raises:
        ValueError: if the suite has fewer prompts of a kind than the subset or the effects ask for.
    """
    suite, subset = config["suite"], config["suite"].get("subset")
    effects = config["effects"].get("prompts")
    asked = {"suite.subset": subset, "effects.prompts": effects}
    if suite["source"] == "tiny":  # renders as many as are asked for
        given = [counts for counts in asked.values() if counts]
        total = {kind: max(counts[kind] for counts in given) for kind in KINDS}
    elif suite["source"] == "vbench":
        total = VBENCH_COUNTS
    else:
        total = count_prompts(suite["path"])
    for key, counts in asked.items():
        for kind in KINDS:
            if counts and counts[kind] > total[kind]:
                raise ValueError(
                    f"config key {key}.{kind}: found {counts[kind]}, expected at most "
                    f"{total[kind]}, the suite's {kind} prompts"
                )
    return {"all": total, "subset": subset or total, "effects": effects or total}


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
    if error.validator == "type" and isinstance(error.instance, str) and "e" in error.instance:
        try:
            number = float(error.instance)
        except ValueError:
            pass
        else:
            return (
                f"config key {path}: found the text {error.instance!r}, expected a number; YAML "
                f"wants a point in it, as in {number:.1e}"
            )
    value = error.validator_value
    value = ", ".join(map(str, value)) if isinstance(value, list) else value
    return f"config key {path}: found {error.instance!r}, expected {expected.format(value)}"
