# Tables, figures and effects; each is part of the HTML report (`snakemake --report`).
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
        "python -m pusa effects {output.csv:q} --experiments {input.experiments:q}"
        " --scores {params.scores:q} --runs {params.runs:q} {params.seed}"
        " {params.seeds} {params.subset} --scale {params.scale:q} &> {log:q}"


if TRAINED:

    rule plot_losses:
        input:
            lora_logs("tables", "training.csv"),
            lora_logs("tables", "validation.csv"),
        output:
            report(
                RESULTS / "figures/losses.png",
                caption="../report/losses.rst",
                category="3. Figures",
                labels={"what": "Loss curves"},
            ),
        log:
            RESULTS / "logs/plot_losses.log",
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,
        params:
            runs=[file.parent for file in lora_logs("tables", "training.csv")],
        shell:
            "python -m pusa plot-losses {output:q} {params.runs:q} &> {log:q}"


rule plot_scores:
    input:
        experiments=config["experiments"],
        scores=score_files("tables"),
        table2=PUBLISHED[2],
    output:
        report(
            RESULTS / "figures/scores.png",
            caption="../report/scores.rst",
            category="3. Figures",
            labels={"what": "Scores against alpha, rank, iterations, steps"},
        ),
    log:
        RESULTS / "logs/plot_scores.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        scores=RESULTS / "scores/tables",
        seed=seed_options(),
        subset=subset_options("tables"),
    shell:
        "python -m pusa plot-scores {output:q} --experiments {input.experiments:q}"
        " --scores {params.scores:q} {params.seed} --table2 {input.table2:q} {params.subset}"
        " &> {log:q}"


rule plot_figure3:
    input:
        experiments=config["experiments"],
        suite=SUITE_INFO,
        samples=[
            *setting_shards("tables", pusa_experiments.base_setting(MAIN).name),
            *setting_shards("tables", MAIN.name),
        ],
    output:
        report(
            RESULTS / "figures/figure3.png",
            caption="../report/figure3.rst",
            category="3. Figures",
            labels={"what": "Figure 3"},
        ),
    log:
        RESULTS / "logs/plot_figure3.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        suite=SUITE,
        samples=RESULTS / "samples/tables",
        seed=seed_options(),
        size=size_options(),
        counts=subset_options("tables"),
    shell:
        "python -m pusa plot-figure3 {output:q} {params.suite:q}"
        " --experiments {input.experiments:q} --samples {params.samples:q}"
        " {params.seed} {params.size} {params.counts} &> {log:q}"


rule make_contact_sheet:
    input:
        experiments=config["experiments"],
        suite=SUITE_INFO,
        samples=setting_shards("tables", MAIN.name),
    output:
        picture=report(
            RESULTS / "figures/contact_sheet.png",
            caption="../report/contact_sheet.rst",
            category="4. Videos",
            labels={"what": "Contact sheet, frames"},
        ),
        video=report(
            RESULTS / "figures/contact_sheet.mp4",
            caption="../report/contact_sheet.rst",
            category="4. Videos",
            labels={"what": "Contact sheet, video"},
        ),
    log:
        RESULTS / "logs/make_contact_sheet.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        suite=SUITE,
        samples=RESULTS / "samples/tables",
        seed=seed_options(),
        size=size_options(),
        counts=subset_options("tables"),
    shell:
        "python -m pusa contact-sheet {output.picture:q} {params.suite:q}"
        " --experiments {input.experiments:q} --samples {params.samples:q}"
        " {params.seed} {params.size} {params.counts} &> {log:q}"
