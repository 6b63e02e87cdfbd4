"""The overview: what a run shows, on one page, from the tables that the other pages are made of."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pusa.report.costs import describe_costs
from pusa.report.page import Number, score_cell, write_page
from pusa.report.study import NOT_VBENCH
from pusa.report.tables import ABLATIONS, TO_MAIN, TO_PUBLISHED
from pusa.score.intervals import FAILS, HOLDS, UNDECIDED

#: The comparison of totals in ``config/claims.yaml`` that is the paper's title.
SURPASSES = "ours > wan_i2v"
#: A verdict as the end of a sentence.
VERDICTS = {HOLDS: "holds", FAILS: "does not hold", UNDECIDED: "is not decided"}
#: Packages that decide numbers.
PACKAGES = ("torch", "diffusers", "transformers", "peft", "deepspeed")


@dataclass(frozen=True)
class Run:
    """The tables of one run, as the commands of the same names write them."""

    table1: pd.DataFrame
    table2: pd.DataFrame
    claims: pd.DataFrame
    effects: pd.DataFrame
    costs: pd.DataFrame
    provenance: dict


def read_run(tables: str | Path, effects: str | Path) -> Run:
    """Read what the overview is made of.

    Args:
        tables: folder with ``table1.csv, table2.csv, claims.csv, costs.csv, provenance.json``.
        effects: of `pusa.report.effects.write_effects`.

    Raises:
        FileNotFoundError: if one of them is missing.
    """
    tables, effects = Path(tables), Path(effects)
    names = ("table1.csv", "table2.csv", "claims.csv", "costs.csv", "provenance.json")
    for file in (*(tables / name for name in names), effects):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; expected the tables of a finished run")
    return Run(
        table1=pd.read_csv(tables / "table1.csv"),
        table2=pd.read_csv(tables / "table2.csv"),
        claims=pd.read_csv(tables / "claims.csv"),
        effects=pd.read_csv(effects),
        costs=pd.read_csv(tables / "costs.csv"),
        provenance=json.loads((tables / "provenance.json").read_text()),
    )


def write_overview(run: Run, out: Path, scale: str) -> None:
    """Write ``out`` with the suffixes .md and .html.

    Args:
        scale: sentences on what was run: model, prompts, samples.
    """
    weight_free = (run.effects["scorer"] == "weight_free").any()
    title = "Pusa V1.0, reproduced" + (f" ({NOT_VBENCH})" if weight_free else "")
    beside, missing = compare_totals(run.table1, run.table2)
    comparison = (
        "Total scores of this run under the published rows whose part they play, in per cent with "
        f"95 % intervals; {missing} published rows were not run. "
        + (
            "The two cannot be compared value by value, so differences are to our main setting. "
            if weight_free
            else ""
        )
        + "In full: Tables 1 and 2."
    )
    sections = [
        ("", describe_result(run), None),
        ("", scale, _two_columns(describe_setup(run))),
        ("Beside the published tables", comparison, beside),
        ("The paper's claims", *_list_claims(run.claims)),
        ("Cost", describe_costs(run.costs), _list_costs(run.costs)),
        (
            "Provenance",
            "In full: Where these numbers come from.",
            _two_columns(_origin(run.provenance)),
        ),
    ]
    write_page(title, sections, out)


def describe_result(run: Run) -> str:
    """The main setting against the base, the published total and Wan-I2V, with intervals."""
    first = run.effects.iloc[0]  # the effects begin with this comparison
    same = (run.effects["before"] == first["before"]) & (run.effects["after"] == first["after"])
    effects = run.effects[same].set_index("measure")
    followed = effects.loc[next(m for m in ("i2v_subject", "i2v_background") if m in effects.index)]
    parts = [
        f"The paper's main effect {VERDICTS[followed['verdict']]} in this run: on {followed.name}, "
        "which tells how far a video keeps to the given image, the adapted model scores "
        f"{_compare(followed)}, with a 95 % interval"
    ]
    if "total" in effects.index:
        total = effects.loc["total"]
        parts.append(f"on the total it scores {_compare(total)} ({total['verdict']})")
    ours = run.table1[(run.table1["group"] == "ours") & (run.table1["source"] == TO_PUBLISHED)]
    for shift in ours.to_dict("records"):
        interval = f"[{shift['total_low']:+.2f}, {shift['total_high']:+.2f}]"
        parts.append(f"its total less the published one is {shift['total']:+.2f} {interval}")
    surpasses = (run.claims["column"] == "total") & (run.claims["comparison"] == SURPASSES)
    for row in run.claims[surpasses & run.claims["difference"].notna()].to_dict("records"):
        parts.append(
            f"its total less that of this run's Wan-I2V is {row['difference']:+.2f} "
            f"[{row['low']:+.2f}, {row['high']:+.2f}]: that Pusa surpasses Wan-I2V "
            f"{VERDICTS[row['here']]} here"
        )
    return f"{'; '.join(parts)}."


def _compare(row: pd.Series) -> str:
    return (
        f"{row['value_after']:.2f} and the base {row['value_before']:.2f}, a difference of "
        f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
    )


def compare_totals(table1: pd.DataFrame, table2: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Our totals beside the published ones.

    Args:
        table1: from `pusa.report.tables.make_table1`.
        table2: from `pusa.report.tables.make_table2`.

    Returns:
        A row per setting that was run: ``table, published setting, published, setting here, here,
        difference``; and how many of the published rows that have a place for ours were not run.
    """
    rows, missing = [], 0
    for name, table in (("1", table1), ("2", table2)):
        published = None  # the row that ours stands under
        for row in table.to_dict("records"):
            if row["source"] == "published":
                published = row
            elif row["source"] in (TO_MAIN, TO_PUBLISHED):
                rows[-1]["difference"] = _cell(row, sign="+")
            elif pd.isna(row["total"]):
                missing, published = missing + 1, None
            else:
                part = ABLATIONS.get(row["group"], "")
                rows.append(
                    {
                        "table": f"{name} {part[:3]}".strip(),
                        "published setting": "" if published is None else _label(published),
                        "published": "" if published is None else score_cell(published["total"]),
                        "setting here": _label(row),
                        "here": _cell(row),
                        "difference": "",
                    }
                )
                published = None
    return pd.DataFrame(rows), missing


def _label(row: dict) -> str:
    """A row of Table 1 by its model, of Table 2 by its numbers."""
    if "model" in row:
        return row["model"]
    parts = {"rank": "rank {:g}", "iteration": "iteration {:g}", "alpha": "alpha {:g}"}
    told = [text.format(row[key]) for key, text in parts.items() if not pd.isna(row[key])]
    return ", ".join([*told, f"{row['steps']:g} steps"])


def _cell(row: dict, sign: str = "") -> Number | str:
    return score_cell(row["total"], row["total_low"], row["total_high"], sign=sign)


def _list_claims(claims: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """How many claims hold, in a sentence, and the verdict on each."""
    each = claims.drop_duplicates("number")

    def count(column: str) -> str:
        return ", ".join(f"{verdict} {n}" for verdict, n in each[column].value_counts().items())

    text = (
        f"Of {len(each)} claims, on the published numbers: {count('claim_published')}; on this "
        f"run's: {count('claim_here')}. In full: The paper's claims, on its numbers and on ours."
    )
    shown = each[["claim", "source", "claim_published", "claim_here"]]
    return text, shown.rename(columns=lambda name: name.removeprefix("claim_"))


def _list_costs(costs: pd.DataFrame) -> pd.DataFrame:
    shown = pd.DataFrame(
        {
            "stage": costs["stage"],
            "jobs": costs["jobs"].map("{:,}".format),
            "hours": costs["hours"].map("{:,.3f}".format),
            "GPU-hours": costs["gpu_hours"].map("{:,.3f}".format),
        }
    )
    if costs["usd"].notna().any():
        shown["USD"] = costs["usd"].map("{:,.2f}".format)
    return shown


def describe_setup(run: Run) -> dict[str, str]:
    """What ran: the settings that are compared, model, training, baseline, sampling, scoring."""
    config, scoring = run.provenance["config"], run.provenance["scoring"].values()
    size, sample, compared = config["clip"], config["sample"], run.effects.iloc[0]
    facts = {
        "adapted": compared["after"],
        "base": compared["before"],
        "model": config["model"]["path"],
    }
    if config["lora"]["source"] == "trained":
        train = config["train"]
        ranks = " and ".join(map(str, train.get("ranks", [])))
        method = f"LoRA of rank {ranks}" if train["method"] == "lora" else "the whole transformer"
        facts["training"] = f"{method}, up to {max(train['iterations']):,} iterations"
        facts["trained on"] = config["dataset"]["path"]
    else:
        facts["LoRA"] = config["lora"]["path"]
    if "baseline" in config:
        baseline = config["baseline"]
        tiny = f"trained here for {baseline.get('steps')} iterations in Wan-I2V's manner: "
        facts["Wan-I2V"] = (tiny if baseline["source"] == "tiny" else "") + baseline["path"]
    scorers = sorted({record["scorer"] for record in scoring})
    return facts | {
        "videos": f"{size['frames']} frames of {size['width']}x{size['height']}",
        "sampling": f"guidance scale {sample['guidance_scale']:g}, shift {sample['shift']:g}",
        "settings sampled and scored": str(len(scoring)),
        "scored by": ", ".join(scorers).replace("_", "-"),
    }


def _origin(provenance: dict) -> dict[str, str]:
    repository, times = provenance["repository"], provenance["times"]
    changes = " with changes" if repository.get("modified") else ""
    devices = {place: ", ".join(names) for place, names in provenance["devices"].items()}
    packages = {name: provenance["packages"].get(name) for name in PACKAGES}
    return {
        "code": repository.get("commit", "unknown") + changes,
        "ran": f"{times['start']} to {times['end']}" if times else "unknown",
        **{f"{place} on": names for place, names in devices.items()},
        "seeds": ", ".join(f"{name} {seed}" for name, seed in provenance["seeds"].items()),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
    }


def _two_columns(facts: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame({"what": list(facts), "value": list(facts.values())})
