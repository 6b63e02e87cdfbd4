# Tables, figures and effects; each is part of the HTML report (`snakemake --report`).


rule make_tables:
    input:
        experiments=config["experiments"],
        scores=score_files("tables"),
        table1=PUBLISHED[1],
        table2=PUBLISHED[2],
    output:
        multiext(str(RESULTS / "tables/table"), "1.csv", "1.md", "2.csv", "2.md"),
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
    params:
        folder=RESULTS / "tables",
        scores=RESULTS / "scores/tables",
        seed=TRAIN["seed"],
        scale=scale_sentence("tables"),
    shell:
        "python -m pusa tables {params.folder:q} --experiments {input.experiments:q}"
        " --scores {params.scores:q} --seed {params.seed} --table1 {input.table1:q}"
        " --table2 {input.table2:q} --scale {params.scale:q} &> {log:q}"


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
            category="2. The paper's effects",
            labels={"what": "{study}"},
        ),
    log:
        RESULTS / "logs/measure_effects/{study}.log",
    conda:
        "../../envs/pusa.yaml"
    params:
        scores=lambda wildcards: RESULTS / "scores" / wildcards.study,
        runs=RESULTS / "lora",
        seed=TRAIN["seed"],
        seeds=lambda wildcards: effect_seed_options(wildcards.study),
        scale=lambda wildcards: scale_sentence(wildcards.study),
    shell:
        "python -m pusa effects {output.csv:q} --experiments {input.experiments:q}"
        " --scores {params.scores:q} --runs {params.runs:q} --seed {params.seed}"
        " {params.seeds} --scale {params.scale:q} &> {log:q}"


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
    params:
        scores=RESULTS / "scores/tables",
        seed=TRAIN["seed"],
    shell:
        "python -m pusa plot-scores {output:q} --experiments {input.experiments:q}"
        " --scores {params.scores:q} --seed {params.seed} --table2 {input.table2:q} &> {log:q}"


rule plot_figure3:
    input:
        experiments=config["experiments"],
        suite=SUITE_INFO,
        samples=figure3_manifests(),
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
    params:
        suite=SUITE,
        samples=RESULTS / "samples/tables",
        seed=TRAIN["seed"],
        size=size_options(),
        counts=prompt_options("tables"),
    shell:
        "python -m pusa plot-figure3 {output:q} {params.suite:q}"
        " --experiments {input.experiments:q} --samples {params.samples:q}"
        " --seed {params.seed} {params.size} {params.counts} &> {log:q}"


rule make_contact_sheet:
    input:
        experiments=config["experiments"],
        suite=SUITE_INFO,
        samples=[RESULTS / f"samples/tables/{MAIN.name}/shard{s}.csv" for s in SHARDS],
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
    params:
        suite=SUITE,
        samples=RESULTS / "samples/tables",
        seed=TRAIN["seed"],
        size=size_options(),
        counts=prompt_options("tables"),
    shell:
        "python -m pusa contact-sheet {output.picture:q} {params.suite:q}"
        " --experiments {input.experiments:q} --samples {params.samples:q}"
        " --seed {params.seed} {params.size} {params.counts} &> {log:q}"
