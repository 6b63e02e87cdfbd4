"""The embedded workflow, made so small that its jobs take seconds, and how to run it."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).parents[1]
COUNTS = {"subject": 2, "background": 2, "camera": 2}


def write_mini(results: Path, name: str = "mini", *, iteration: int = 4, **sections: dict) -> Path:
    """Write a configuration, ``<results>/<name>.yaml``, and its experiments sheet.

    It is config/demo.yaml with one short training, nine frames, and the settings of Table 1's rows;
    a row of Table 2 repeats one of them.

    Args:
        iteration: the last of the training, and the one that is sampled.
        sections: keys to replace or add in sections of the configuration.
    """
    results.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    sheet = pd.read_csv(ROOT / config["experiments"], sep="\t", dtype=str, keep_default_na=False)
    again = (sheet["group"] == "steps") & (sheet["published"] == "512/900/1.4/10")
    sheet = sheet[(sheet["table"] == "1") | again]
    sheet.loc[sheet["steps"] != "", "steps"] = "2"
    sheet.loc[sheet["model"] == "pusa", ["rank", "iteration"]] = ["4", str(iteration)]
    sheet.to_csv(results / f"{name}.tsv", sep="\t", index=False)

    config |= {"results": str(results), "experiments": str(results / f"{name}.tsv")}
    config["dataset"] |= {"path": str(results / "dataset"), "clips": 10}
    config["suite"] = {"source": "tiny", "path": str(results / "suite"), "subset": COUNTS}
    config["baseline"] |= {"path": str(results / "baseline"), "steps": 2}
    config["clip"]["frames"] = 9
    config["train"]["validation_clips"] = 2
    config["tasks"] = {"clips": 2}
    config["effects"] = {"seeds": [0, 1], "prompts": COUNTS}
    for section, keys in sections.items():
        config[section] = config.get(section, {}) | keys
    file = results / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def command(config: Path, *arguments: str) -> list[str]:
    """Snakemake on two cores, as a user calls it in the repository's root; targets after --."""
    snakemake = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", str(config)]
    return [*snakemake, *arguments]


def activated(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which the rules' commands are found, as after activating this one."""
    return environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"}


def snakemake(
    config: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run the workflow to its end; standard error goes where standard output does."""
    return subprocess.run(
        command(config, *arguments),
        cwd=ROOT,
        env=environment or activated(dict(os.environ)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
