"""The overview: what a run shows, on one page, from the tables that the other pages are made of."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pusa.experiments import BOUNDS
from pusa.report.costs import ATTEMPTS, describe_costs
from pusa.report.page import Number, score_cell, two_columns, write_page
from pusa.report.provenance import describe_commit
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
    tables = Path(tables)
    files = {name: tables / f"{name}.csv" for name in ("table1", "table2", "claims", "costs")}
    files["effects"] = Path(effects)
    provenance = tables / "provenance.json"
    for file in (*files.values(), provenance):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; expected the tables of a finished run")
    read = {name: pd.read_csv(file) for name, file in files.items()}
    return Run(**read, provenance=json.loads(provenance.read_text()))


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
    )
    if weight_free:
        comparison += (
            "The two cannot be compared value by value, so differences are to our main setting. "
        )
    origin = two_columns(_origin(run.provenance))
    sections = [
        ("", describe_result(run), None),
        ("", scale, two_columns(describe_setup(run))),
        ("Beside the published tables", f"{comparison}In full: Tables 1 and 2.", beside),
        ("The paper's claims", *_list_claims(run.claims)),
        ("Cost", f"{describe_costs(run.costs)} {ATTEMPTS}", _list_costs(run.costs)),
        ("Provenance", "In full: Where these numbers come from.", origin),
    ]
    write_page(title, sections, out)


def describe_result(run: Run) -> str:
    """The main setting against the base, the published total, stillness and Wan-I2V."""
    first = run.effects.iloc[0]  # the effects begin with this comparison
    same = (run.effects["before"] == first["before"]) & (run.effects["after"] == first["after"])
    effects = run.effects[same].set_index("measure")
    followed = effects.loc[next(m for m in ("i2v_subject", "i2v_background") if m in effects.index)]
    told = [
        f"The paper's main effect {VERDICTS[followed['verdict']]} in this run: on {followed.name}, "
        "which tells how far a video keeps to the given image, the adapted model scores "
        f"{_compare(followed)}, with a 95 % interval."
    ]
    if "total" in effects.index:
        total = effects.loc["total"]
        told.append(f"On the total it scores {_compare(total)} ({total['verdict']}).")
    ours = run.table1[(run.table1["group"] == "ours") & (run.table1["source"] == TO_PUBLISHED)]
    for shift in ours.dropna(subset="total").to_dict("records"):
        gap = _points(shift["total"], shift["total_low"], shift["total_high"])
        told.append(f"Its total is {gap} than the published one.")
    still = run.table1[(run.table1["model"] == BOUNDS["still"]) & (run.table1["source"] == "here")]
    for row in still.dropna(subset="total").to_dict("records"):
        told.append(f"The image standing still, which no model makes, has a total of {_cell(row)}.")
    surpasses = (run.claims["column"] == "total") & (run.claims["comparison"] == SURPASSES)
    for row in run.claims[surpasses & run.claims["difference"].notna()].to_dict("records"):
        gap = _points(row["difference"], row["low"], row["high"])
        told.append(
            f"Its total is {gap} than that of this run's Wan-I2V: that Pusa surpasses Wan-I2V "
            f"{VERDICTS[row['here']]} here."
        )
    return " ".join(told)


def _points(difference: float, low: float, high: float) -> str:
    """A difference as people say it: so many points more, or less."""
    if difference < 0:
        return f"{score_cell(-difference, -high, -low)} points less"
    return f"{score_cell(difference, low, high)} points more"


def _compare(row: pd.Series) -> str:
    values = f"{row['value_after']:.2f} and the base {row['value_before']:.2f}"
    return f"{values}, a difference of {_difference(row)}"


def _difference(row: dict | pd.Series) -> Number | str:
    return score_cell(row["difference"], row["low"], row["high"], sign="+")


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
            elif row["group"] in BOUNDS.values():  # Table 1 has them too
                break
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
    formats = {"jobs": "{:,}", "hours": "{:,.3f}", "gpu_hours": "{:,.3f}", "usd": "{:,.2f}"}
    shown = costs.assign(**{name: costs[name].map(text.format) for name, text in formats.items()})
    if costs["usd"].isna().all():
        shown = shown.drop(columns="usd")
    return shown.rename(columns={"gpu_hours": "GPU-hours", "usd": "USD"})


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
        runs = run.provenance["training"].values()
        ranks = " and ".join(map(str, sorted({r["rank"] for r in runs if r["rank"]})))
        method = f"LoRA of rank {ranks}" if ranks else "the whole transformer"
        last = max(iteration for r in runs for iteration in r["iterations"])
        facts["training"] = f"{method}, up to {last:,} iterations"
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
    times, packages = provenance["times"], provenance["packages"]
    installed = [f"{name} {packages[name]}" for name in PACKAGES if name in packages]
    return {
        "code": describe_commit(provenance["repository"]),
        "ran": f"{times['start']} to {times['end']}" if times else "unknown",
        **{f"{place} on": ", ".join(names) for place, names in provenance["devices"].items()},
        "seeds": ", ".join(f"{name} {seed}" for name, seed in provenance["seeds"].items()),
        "packages": ", ".join(installed),
    }
