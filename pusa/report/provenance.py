"""Where a table's numbers come from: configuration, code, downloads, packages, machines, times."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

import pandas as pd

from pusa.config import SampleSwitches
from pusa.report.costs import ATTEMPTS, job_seconds
from pusa.report.page import two_columns, write_page

#: What the page tells of a training run; its run.json has the rest.
TRAINING_FACTS = ("device", "processes", "finished", "objective", "base", "cache")


def collect_provenance(
    config: dict,
    *,
    negative_prompt: str,
    repository: str | Path,
    downloads: list[Path],
    benchmarks: str | Path,
    runs: list[Path],
    manifests: list[Path],
    scores: list[Path],
) -> dict:
    """All that decides a table's numbers, as one JSON-ready dictionary.

    Args:
        config: the configuration with its defaults filled in.
        negative_prompt: of guidance, the text itself, as the configuration names a file.
        repository: folder of the workflow's code.
        downloads: the ``download.json`` of every folder that came from the network.
        benchmarks: folder of Snakemake's benchmark files, which tell when jobs ran.
        runs: folders of the training runs, with their ``run.json``.
        manifests: of all sampling jobs, whose column ``device`` tells where they ran.
        scores: the record beside each setting's score file.
    """
    scoring = {file.stem: json.loads(file.read_text()) for file in scores}
    devices = {
        "sampling": sorted({d for m in manifests for d in pd.read_csv(m)["device"]}),
        "scoring": sorted({d for record in scoring.values() for d in record["devices"]}),
    }
    training = {run.name: json.loads((run / "run.json").read_text()) for run in runs}
    seeds = {"sampling": config["sample"]["seed"]}
    if config["lora"]["source"] == "trained":
        seeds |= {"training": config["train"]["seed"], "effects": config["effects"]["seeds"]}
    guidance = {"scale": config["sample"]["guidance_scale"]}
    if "baseline" in config:
        guidance["scale of Wan-I2V"] = config["baseline"]["guidance_scale"]
    keys = SampleSwitches.model_fields.keys() & config["sample"].keys()
    switches = SampleSwitches.read({key: config["sample"][key] for key in keys})
    return {
        "config": config,
        "switches": {"change scores": switches.altering, "round otherwise": switches.rounding},
        "guidance": guidance | {"negative prompt": negative_prompt},
        "repository": _describe_repository(repository),
        "seeds": seeds,
        "times": _run_times(Path(benchmarks)),
        "devices": devices,
        "training": training,
        "scoring": scoring,
        "downloads": {str(f.parent): json.loads(f.read_text()) for f in downloads},
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": dict(
            sorted((d.name, d.version) for d in distributions() if d.name is not None)
        ),
    }


def _describe_repository(folder: str | Path) -> dict:
    """The commit, and whether files differ from it; empty outside a git repository."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except FileNotFoundError:  # no git on this machine
        commit = None
    return {} if commit is None else {"commit": commit, "modified": bool(changes)}


def _run_times(benchmarks: Path) -> dict:
    """When the first and the last of the jobs on record began and ended, UTC."""
    starts, ends = [], []
    for file in benchmarks.rglob("*.tsv"):
        end = file.stat().st_mtime
        ends.append(end)
        starts.append(end - job_seconds(file))

    def stamp(seconds: float) -> str:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

    return {"start": stamp(min(starts)), "end": stamp(max(ends))} if ends else {}


def describe_commit(repository: dict) -> str:
    """A record's commit in words, with whether files differed from it."""
    changes = " with changes" if repository.get("modified") else ""
    return repository.get("commit", "unknown") + changes


def write_provenance(record: dict, costs: pd.DataFrame, out: Path) -> None:
    """Write ``out`` with the suffixes ``.json`` (everything), ``.md`` and ``.html`` (to read)."""
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    run = {
        "commit": describe_commit(record["repository"]),
        **record["times"],
        "sampled on": ", ".join(record["devices"]["sampling"]),
        "scored on": ", ".join(record["devices"]["scoring"]),
        **_describe_scoring(record["scoring"]),
        "python": record["python"],
        "system": record["system"],
        **{f"seed: {name}": value for name, value in record["seeds"].items()},
        **{f"guidance: {name}": value for name, value in record["guidance"].items()},
        **{
            f"switches that {what}": ", ".join(f"{k} {v}" for k, v in switches.items())
            for what, switches in record["switches"].items()
            if switches
        },
    }
    downloads = [
        {
            "folder": folder,
            "from": found.get("repo", found.get("url", "")),
            "revision": found.get("revision", ""),
            "commit": found.get("commit", ""),
            "files": len(found["files"]),
        }
        for folder, found in record["downloads"].items()
    ]
    training = [
        {"run": name, **{key: found[key] for key in TRAINING_FACTS}}
        for name, found in record["training"].items()
    ]
    shown_costs = costs.map(lambda v: f"{v:.3f}" if isinstance(v, float) else v)
    shown_costs = shown_costs.where(costs.notna(), "")  # without a price
    sections = [
        ("The run", "Times are UTC, of the jobs on record.", two_columns(run)),
        ("Cost", f"Hours of jobs, times the GPUs of each. {ATTEMPTS}", shown_costs),
    ]
    if downloads:
        text = "Sizes and checksums of every file are in the .json beside this page."
        sections.append(("Downloads", text, pd.DataFrame(downloads)))
    if training:
        sections.append(("Training runs", "See also their run.json.", pd.DataFrame(training)))
    sections += [
        ("Configuration", "With defaults filled in.", two_columns(_flatten(record["config"]))),
        ("Packages", "Installed where this page was made.", two_columns(record["packages"])),
    ]
    write_page("Where these numbers come from", sections, out)


def _describe_scoring(records: dict[str, dict]) -> dict[str, str]:
    """What scored, in a row for each fact that settings may differ in: mostly one answer."""
    facts: dict[str, set[str]] = {}
    for record in records.values():
        packages = ", ".join(f"{n} {v}" for n, v in record["packages"].items())
        # The digest of its table is of one setting, and in the JSON.
        told = {k: v for k, v in record.items() if isinstance(v, str) and k != "sha256"}
        for key, value in {**told, "packages": packages}.items():
            facts.setdefault(f"scoring: {key.replace('_', ' ')}", set()).add(value)
    return {key: "; ".join(sorted(values)) for key, values in facts.items()}


def _flatten(values: dict, prefix: str = "") -> dict:
    """Values of nested dictionaries, by their keys joined with dots."""
    flat = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
