# The figures, numbered as in the paper. Each is a picture for the report and a PDF for print.
FIGURES = RESULTS / "figures"


if TRAINED:

    rule plot_losses:
        input:
            lora_logs("tables", "training.csv"),
            lora_logs("tables", "validation.csv"),
        output:
            FIGURES / "losses.pdf",
            picture=report(
                FIGURES / "losses.png",
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
            "python -m pusa plot-losses {output.picture:q} {params.runs:q} &> {log:q}"


rule plot_scores:
    input:
        experiments=config["experiments"],
        scores=score_files("tables"),
        table2=PUBLISHED[2],
    output:
        FIGURES / "scores.pdf",
        picture=report(
            FIGURES / "scores.png",
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
        "python -m pusa plot-scores {output.picture:q} --experiments {input.experiments:q}"
        " --scores {params.scores:q} {params.seed} --table2 {input.table2:q} {params.subset}"
        " &> {log:q}"


rule plot_figure1:
    input:
        experiments=config["experiments"],
        table1=RESULTS / "tables/table1.csv",
        costs=RESULTS / "tables/costs.csv",
        cache=RESULTS / "cache/index.json" if TRAINED else [],
    output:
        FIGURES / "figure1.pdf",
        picture=report(
            FIGURES / "figure1.png",
            caption="../report/figure1.rst",
            category="3. Figures",
            labels={"what": "Figure  1"},
        ),
    log:
        RESULTS / "logs/plot_figure1.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        seed=seed_options(),
        clips=trained_clips_options,
        note=setting_sentence(),
    shell:
        "python -m pusa plot-figure1 {output.picture:q} --experiments {input.experiments:q}"
        " --table1 {input.table1:q} --costs {input.costs:q} {params.seed} {params.clips}"
        " --note {params.note:q} &> {log:q}"


rule plot_figure3:
    input:
        experiments=config["experiments"],
        suite=SUITE_INFO,
        samples=[
            file
            for setting in shown_settings()
            for file in setting_shards("tables", setting.name)
        ],
    output:
        FIGURES / "figure3.pdf",
        picture=report(
            FIGURES / "figure3.png",
            caption="../report/figure3.rst",
            category="3. Figures",
            labels={"what": "Figure  3"},
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
        note=compared_sentence(),
    shell:
        "python -m pusa plot-figure3 {output.picture:q} {params.suite:q}"
        " --experiments {input.experiments:q} --samples {params.samples:q}"
        " {params.seed} {params.size} {params.counts} --note {params.note:q} &> {log:q}"


# On one image, prompt and seed: the base with VTA, Wan-I2V, the adapted model.
rule measure_attention:
    input:
        suite=SUITE_INFO,
        model=MODEL / "model_index.json",
        weights=shown_weights,
        negative_prompt=NEGATIVE_PROMPT,
    output:
        multiext(
            str(RESULTS / "attention/{model}"),
            table=".csv",
            record=".json",
            mass="-mass.csv",
        ),
    log:
        RESULTS / "logs/measure_attention/{model}.log",
    benchmark:
        RESULTS / "benchmarks/measure_attention/{model}.tsv"
    conda:
        "../../envs/pusa.yaml"
    threads: on(gpu=4, cpu=1)
    resources:
        gpu=on(gpu=1, cpu=0),
        cpus_per_gpu=on(gpu=4, cpu=0),
        mem_mb=on(gpu=96_000, cpu=0),
        runtime=on(gpu=240, cpu=60),
    params:
        model=MODEL,
        weights=attention_options,
        example=first_image_options,
        size=clip_options(),
        name=shown_name_options,
        options=f"{attention_steps()} {pipeline_options()}",
        negative=negative_prompt_options,
    shell:
        "python -m pusa attention {params.model:q} {output.table:q} {params.weights:q} {params.name:q}"
        " {params.example:q} {params.size} {params.options} {params.negative:q} &> {log:q}"


# Tensor by tensor: two models of any size need no memory, and the LoRA is not merged.
rule measure_drift:
    input:
        model=MODEL / "model_index.json",
        weights=shown_weights,
    output:
        multiext(str(RESULTS / "drift/{model}"), table=".csv", record=".json"),
    log:
        RESULTS / "logs/measure_drift/{model}.log",
    benchmark:
        RESULTS / "benchmarks/measure_drift/{model}.tsv"
    conda:
        "../../envs/pusa.yaml"
    threads: on(gpu=8, cpu=1)
    resources:
        mem_mb=on(gpu=16_000, cpu=0),
        runtime=on(gpu=240, cpu=20),
    params:
        base=MODEL / "transformer",
        weights=drift_options,
        name=shown_name_options,
    shell:
        "python -m pusa drift {params.base:q} {output.table:q} {params.weights:q} {params.name:q}"
        " &> {log:q}"


rule plot_figure4:
    input:
        expand(rules.measure_attention.output, model=shown_models()),
        tables=expand(rules.measure_attention.output.table, model=shown_models()),
    output:
        FIGURES / "figure4.pdf",
        picture=report(
            FIGURES / "figure4.png",
            caption="../report/figure4.rst",
            category="3. Figures",
            labels={"what": "Figure  4"},
        ),
    log:
        RESULTS / "logs/plot_figure4.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        note=analysed_sentence(),
    shell:
        "python -m pusa plot-attention {output.picture:q} {input.tables:q} --note {params.note:q}"
        " &> {log:q}"


rule plot_figure5:
    input:
        expand(rules.measure_drift.output, model=shown_models()[1:]),
        tables=expand(rules.measure_drift.output.table, model=shown_models()[1:]),
    output:
        FIGURES / "figure5.pdf",
        picture=report(
            FIGURES / "figure5.png",
            caption="../report/figure5.rst",
            category="3. Figures",
            labels={"what": "Figure  5"},
        ),
    log:
        RESULTS / "logs/plot_figure5.log",
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        note=analysed_sentence(),
    shell:
        "python -m pusa plot-drift {output.picture:q} {input.tables:q} --note {params.note:q}"
        " &> {log:q}"


# More of the suite's videos, of other prompts than Figure 3's: from images, and from text alone.
for number, setting in sample_figures().items():

    rule:
        name:
            f"plot_figure{number}"
        input:
            experiments=config["experiments"],
            suite=SUITE_INFO,
            samples=setting_shards("tables", setting.name),
        output:
            FIGURES / f"figure{number}.pdf",
            picture=report(
                FIGURES / f"figure{number}.png",
                caption=f"../report/figure{number}.rst",
                category="3. Figures",
                labels={"what": f"Figure {number:>2}"},
            ),
        log:
            RESULTS / f"logs/plot_figure{number}.log",
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
            task=setting.task,
            number=number,
            note=setting_sentence(),
        shell:
            "python -m pusa plot-samples {output.picture:q} {params.suite:q} --figure {params.number}"
            " --task {params.task} --experiments {input.experiments:q} --samples {params.samples:q}"
            " {params.seed} {params.size} {params.counts} --note {params.note:q} &> {log:q}"


for name, task in TASKS.items():

    rule:
        name:
            f"plot_figure{task.figure}"
        input:
            RESULTS / f"samples/tasks/{name}/videos.csv",
        output:
            FIGURES / f"figure{task.figure}.pdf",
            picture=report(
                FIGURES / f"figure{task.figure}.png",
                caption=f"../report/figure{task.figure}.rst",
                category="3. Figures",
                labels={"what": f"Figure {task.figure:>2}"},
            ),
        log:
            RESULTS / f"logs/plot_figure{task.figure}.log",
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,
        params:
            videos=task_videos(name),
            number=task.figure,
            title=task.title,
            note=task_sentence(),
        shell:
            "python -m pusa plot-strips {output.picture:q} {params.videos:q}"
            " --figure {params.number} --title {params.title:q} --note {params.note:q} &> {log:q}"


rule make_contact_sheet:
    input:
        experiments=config["experiments"],
        suite=SUITE_INFO,
        samples=setting_shards("tables", MAIN.name),
    output:
        FIGURES / "contact_sheet.pdf",
        picture=report(
            FIGURES / "contact_sheet.png",
            caption="../report/contact_sheet.rst",
            category="4. Videos",
            labels={"what": "Contact sheet, frames"},
        ),
        video=report(
            FIGURES / "contact_sheet.mp4",
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
