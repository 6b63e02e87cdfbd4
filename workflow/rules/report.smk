# Tables, effects, overview and pages of videos, which the HTML report (`snakemake --report`) shows.
import json


rule make_tables:
    input:
        experiments=config["experiments"],
        scores=score_files("tables"),
        table1=PUBLISHED[1],
        table2=PUBLISHED[2],
        costs=RESULTS / "tables/costs.csv",
    output:
        multiext(str(RESULTS / "tables/table1"), ".csv", ".md", ".tex"),
        multiext(str(RESULTS / "tables/table2"), ".csv", ".md", ".tex"),
        table1=report(
            RESULTS / "tables/table1.html",
            caption="../report/table1.rst",
            category="1. Tables",
            labels={"what": "Table 1"},
        ),
        table2=report(
            RESULTS / "tables/table2.html",
            caption="../report/table2.rst",
            category="1. Tables",
            labels={"what": "Table 2"},
        ),
    log:
        RESULTS / "logs/make_tables.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        folder=RESULTS / "tables",
        scores=RESULTS / "scores/tables",
        seed=seed_options(),
        scale=scale_sentence("tables"),
        subset=subset_options("tables"),
    shell:
        "python -m pusa tables {params.folder:q} --experiments {input.experiments:q}"
        " --scores {params.scores:q} {params.seed} --table1 {input.table1:q}"
        " --table2 {input.table2:q} --costs {input.costs:q} {params.subset}"
        " --scale {params.scale:q} &> {log:q}"


rule audit_tables:
    input:
        experiments=config["experiments"],
        table1=PUBLISHED[1],
        table2=PUBLISHED[2],
    output:
        multiext(str(RESULTS / "tables/audit"), ".csv", ".md"),
        html=report(
            RESULTS / "tables/audit.html",
            caption="../report/audit.rst",
            category="1. Tables",
            labels={"what": "Audit of the published tables"},
        ),
    log:
        RESULTS / "logs/audit_tables.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        seed=seed_options(),
    shell:
        "python -m pusa audit {output.html:q} --table1 {input.table1:q} --table2 {input.table2:q}"
        " --experiments {input.experiments:q} {params.seed} &> {log:q}"


rule check_claims:
    input:
        claims="config/claims.yaml",
        experiments=config["experiments"],
        scores=score_files("tables"),
        table1=PUBLISHED[1],
        table2=PUBLISHED[2],
    output:
        multiext(str(RESULTS / "tables/claims"), ".csv", ".md"),
        html=report(
            RESULTS / "tables/claims.html",
            caption="../report/claims.rst",
            category="2. The paper's claims",
            labels={"what": "Claims, on the published numbers and on this run's"},
        ),
    log:
        RESULTS / "logs/check_claims.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        scores=RESULTS / "scores/tables",
        seed=seed_options(),
        scale=scale_sentence("tables"),
        subset=subset_options("tables"),
    shell:
        "python -m pusa check-claims {output.html:q} {input.claims:q}"
        " --experiments {input.experiments:q} --scores {params.scores:q} {params.seed}"
        " --table1 {input.table1:q} --table2 {input.table2:q} {params.subset}"
        " --scale {params.scale:q} &> {log:q}"


rule measure_costs:
    input:
        benchmark_files(),
        lora_logs("tables", "training.csv"),
    output:
        RESULTS / "tables/costs.csv",
    log:
        RESULTS / "logs/measure_costs.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        benchmarks=RESULTS / "benchmarks",
        runs=[word for run in lora_logs("tables", "") for word in ("--run", run)],
        main_run=MAIN.run,
        gpus=" ".join(f"--gpus {stage}={n}" for stage, n in gpus_of_stages().items()),
        price=(
            f"--usd-per-gpu-hour {config['cost']['usd_per_gpu_hour']}"
            if "usd_per_gpu_hour" in config["cost"]
            else ""
        ),
    shell:
        "python -m pusa measure-costs {output:q} --benchmarks {params.benchmarks:q}"
        " {params.runs:q} --main-run {params.main_run:q} {params.gpus} {params.price} &> {log:q}"


rule record_provenance:
    input:
        tables=rules.make_tables.output,
        costs=rules.measure_costs.output,
        manifests=manifests("tables"),
        scores=score_files("tables"),
        runs=lora_logs("tables", "run.json"),
        downloads=downloads(),
    output:
        multiext(str(RESULTS / "tables/provenance"), ".json", ".md"),
        report(
            RESULTS / "tables/provenance.html",
            caption="../report/provenance.rst",
            category="5. Provenance",
            labels={"what": "Where the numbers come from"},
        ),
    log:
        RESULTS / "logs/record_provenance.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        out=RESULTS / "tables/provenance",
        config=json.dumps(config),
        benchmarks=RESULTS / "benchmarks",
        samples=RESULTS / "samples/tables",
        scores=RESULTS / "scores/tables",
        runs=[word for run in lora_logs("tables", "") for word in ("--run", run)],
        downloads=[word for file in downloads() for word in ("--download-record", file)],
    shell:
        "python -m pusa record-provenance {params.out:q} --config {params.config:q}"
        " --costs {input.costs:q} --benchmarks {params.benchmarks:q}"
        " --samples {params.samples:q} --scores {params.scores:q} {params.runs:q}"
        " {params.downloads:q} &> {log:q}"


rule measure_effects:
    input:
        claims="config/claims.yaml",
        experiments=config["experiments"],
        scores=lambda wildcards: score_files(wildcards.study),
        losses=lambda wildcards: lora_logs(wildcards.study, "validation.csv"),
    output:
        csv=RESULTS / "effects/{study}.csv",
        markdown=RESULTS / "effects/{study}.md",
        html=report(
            RESULTS / "effects/{study}.html",
            caption="../report/effects.rst",
            category="2. The paper's claims",
            labels={"what": "Effects ({study})"},
        ),
    log:
        RESULTS / "logs/measure_effects/{study}.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        scores=lambda wildcards: RESULTS / "scores" / wildcards.study,
        runs=RESULTS / "lora",
        seed=seed_options(),
        seeds=lambda wildcards: effect_seed_options(wildcards.study),
        subset=lambda wildcards: subset_options(wildcards.study),
        scale=lambda wildcards: scale_sentence(wildcards.study),
    shell:
        "python -m pusa effects {output.csv:q} {input.claims:q}"
        " --experiments {input.experiments:q} --scores {params.scores:q} --runs {params.runs:q}"
        " {params.seed} {params.seeds} {params.subset} --scale {params.scale:q} &> {log:q}"


rule make_overview:
    input:
        tables=rules.make_tables.output,
        claims=rules.check_claims.output,
        costs=rules.measure_costs.output,
        provenance=rules.record_provenance.output,
        effects=RESULTS / "effects/tables.csv",
    output:
        RESULTS / "tables/overview.md",
        html=report(
            RESULTS / "tables/overview.html",
            caption="../report/overview.rst",
            category="0. Overview",
            labels={"what": "Overview"},
        ),
    log:
        RESULTS / "logs/make_overview.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        tables=RESULTS / "tables",
        scale=scale_sentence("tables"),
    shell:
        "python -m pusa overview {output.html:q} --tables {params.tables:q}"
        " --effects {input.effects:q} --scale {params.scale:q} &> {log:q}"


TASK_MANIFESTS = expand(RESULTS / "samples/tasks/{task}/videos.csv", task=TASKS)
TABLE1 = EXPERIMENTS.loc[EXPERIMENTS["table"] == "1", "setting"]
# Pages of the report by the lists of their videos: of a video itself it would show no more than a
# link to save it.
VIDEO_PAGES = {
    "models": [f for setting in TABLE1 for f in setting_shards("tables", setting.name)],
    **({"tasks": TASK_MANIFESTS} if TASKS else {}),
}
VIDEO_TITLES = {
    "models": "The same image and prompt through every model of Table 1",
    "tasks": "The tasks of Figures 7 to 12",
}


rule make_video_page:
    input:
        lambda wildcards: VIDEO_PAGES[wildcards.page],
    output:
        report(
            RESULTS / "figures/videos_{page}.html",
            caption="../report/videos.rst",
            category="4. Videos",
            labels=lambda wildcards: {"what": VIDEO_TITLES[wildcards.page]},
        ),
    log:
        RESULTS / "logs/make_video_page/{page}.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        title=lambda wildcards: VIDEO_TITLES[wildcards.page],
        folders=lambda wildcards, input: list(
            dict.fromkeys(Path(f).parent for f in input)
        ),
    shell:
        "python -m pusa gallery {output:q} {params.folders:q} --title {params.title:q} &> {log:q}"


rule make_gallery:
    input:
        manifests("tables"),
        TASK_MANIFESTS,
    output:
        directory(RESULTS / "gallery"),
    log:
        RESULTS / "logs/make_gallery.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        title=f"Videos of {RESULTS}",
        folders=lambda wildcards, input: list(
            dict.fromkeys(Path(f).parent for f in input)
        ),
    shell:
        "python -m pusa gallery {output:q} {params.folders:q} --title {params.title:q} &> {log:q}"
