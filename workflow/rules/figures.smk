# The figures, numbered as in the paper. Each is a picture for the report and a PDF for print.


# On one image, prompt and seed: the base with VTA, Wan-I2V, the adapted model. The image and the
# prompt are Figure 3's first.
rule attention:
    input:
        suite=FILES.suite_info,
        model=ancient(f"{MODEL}/model_index.json"),
        weights=weights_of,
    output:
        multiext(
            FILES.path("attention/{model}"),
            table=".csv",
            record=".json",
            mass="-mass.csv",
        ),
    log:
        FILES.log("attention", "{model}"),
    benchmark:
        FILES.benchmark("attention", "{model}")
    conda:
        "../../envs/pusa.yaml"
    threads: on(gpu=4, cpu=1)
    resources:
        gpu=on(gpu=1, cpu=0),
        cpus_per_gpu=on(gpu=4, cpu=0),
        mem_mb=on(gpu=96_000, cpu=0),
        runtime=on(gpu=240, cpu=60),
    params:
        model=subpath(input.model, parent=True),
        suite=subpath(input.suite, parent=True),
        counts=json.dumps(FILES.subset("tables")),
        weights=lambda wildcards: (
            MAIN_WEIGHTS if wildcards.model == FILES.main.model else pipeline_weights()
        ),
        baseline=lambda wildcards: (
            ["--baseline", CONFIG.baseline.path] if wildcards.model == WAN_I2V else []
        ),
        label=label_options,
        settings=MAIN_VIDEO,
        device=CONFIG.device,
    shell:
        "python -m pusa attention {params.model:q} {output.table:q} {params.label:q}"
        " --suite {params.suite:q} --counts {params.counts:q} {params.baseline:q}"
        " --weights {params.weights:q} --settings {params.settings:q}"
        " --device {params.device} &> {log:q}"


# Tensor by tensor: two models of any size need no memory, and the LoRA is not merged.
rule drift:
    input:
        model=ancient(f"{MODEL}/model_index.json"),
        weights=weights_of,
    output:
        multiext(FILES.path("drift/{model}"), table=".csv", record=".json"),
    log:
        FILES.log("drift", "{model}"),
    benchmark:
        FILES.benchmark("drift", "{model}")
    conda:
        "../../envs/pusa.yaml"
    threads: on(gpu=8, cpu=1)
    resources:
        mem_mb=on(gpu=16_000, cpu=0),
        runtime=on(gpu=240, cpu=20),
    params:
        base=FILES.transformer,
        weights=drift_options,
        label=label_options,
    shell:
        "python -m pusa drift {params.base:q} {output.table:q} {params.weights:q} {params.label:q}"
        " &> {log:q}"


COMPARED = [setting.model for setting in FILES.compared]
# What the suite's videos of a setting are shown by.
SHOWN = {
    "counts": FILES.subset("tables"),
    "height": CONFIG.clip.height,
    "width": CONFIG.clip.width,
}


# By name: script in workflow/scripts, label, input, params.
FIGURES = {
    "figure1": (
        "plot_figure1",
        "Figure  1",
        {
            "experiments": ancient(CONFIG.experiments),
            "table1": FILES.path("tables/table1.csv"),
            "costs": FILES.path("tables/costs.csv"),
            "cache": FILES.path("cache/index.json") if TRAINED else [],
        },
        {
            "seed": SEED,
            "held_out": TRAIN.validation_clips,
            "shipped": SHIPPED,
            "note": captions.describe_setting(FILES),
        },
    ),
    "figure3": (
        "plot_figure3",
        "Figure  3",
        shown_samples(*FILES.compared),
        {
            **SHOWN,
            "models": {
                s.model: FILES.samples("tables", s.name) for s in FILES.compared
            },
            "note": captions.describe_compared(FILES),
        },
    ),
    "figure4": (
        "plot_attention",
        "Figure  4",
        {
            "tables": expand(rules.attention.output.table, model=COMPARED),
            "others": expand(rules.attention.output, model=COMPARED),
        },
        {"note": captions.describe_analysed(FILES)},
    ),
    "figure5": (
        "plot_drift",
        "Figure  5",
        {
            "tables": expand(rules.drift.output.table, model=COMPARED[1:]),
            "others": expand(rules.drift.output, model=COMPARED[1:]),
        },
        {"note": captions.describe_analysed(FILES)},
    ),
    # More of the suite's videos, of other prompts than Figure 3's: from images, and from text.
    **{
        f"figure{number}": (
            "plot_samples",
            f"Figure {number:>2}",
            shown_samples(setting),
            {
                **SHOWN,
                "title": f"Figure {number}: {TASKS[setting.task].title}",
                "note": captions.describe_setting(FILES),
            },
        )
        for number, setting in FILES.sample_figures.items()
    },
    **{
        f"figure{task.figure}": (
            "plot_strips",
            f"Figure {task.figure:>2}",
            {
                "samples": FILES.task_manifest(name),
                "dataset": f"{FILES.task_dataset}/metadata.csv",
            },
            {
                "videos": FILES.task_videos(name),
                "title": f"Figure {task.figure}: {task.title}",
                "note": captions.describe_tasks(FILES),
            },
        )
        for name, task in FILES.tasks.items()
    },
}
if (FILES.experiments["table"] == "2").any():
    FIGURES["scores"] = (
        "plot_scores",
        "Scores against alpha, rank, iterations, steps",
        {
            "experiments": ancient(CONFIG.experiments),
            "scores": FILES.score_files("tables"),
            "table2": ancient(FILES.published[2]),
        },
        {"study": study_params("tables"), "shipped": SHIPPED},
    )
if TRAINED:
    FIGURES["losses"] = (
        "plot_losses",
        "Loss curves",
        {
            "training": FILES.run_files("tables", "training.csv"),
            "validation": FILES.run_files("tables", "validation.csv"),
        },
        {"models": [FILES.runs[name].model for name in FILES.runs_of("tables")]},
    )

for name, (plot, label, files, values) in FIGURES.items():

    rule:
        name:
            f"plot_{name}"
        input:
            **files,
        output:
            FILES.path(f"figures/{name}.pdf"),
            picture=report(
                FILES.path(f"figures/{name}.png"),
                caption=f"../report/{name}.rst",
                category="3. Figures",
                labels={"what": label},
            ),
        log:
            FILES.log(f"plot_{name}"),
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,
        params:
            **values,
            plot=plot,
        script:
            "../scripts/{params.plot}.py"


rule make_contact_sheet:
    input:
        **shown_samples(FILES.main),
    output:
        FILES.path("figures/contact_sheet.pdf"),
        picture=report(
            FILES.path("figures/contact_sheet.png"),
            caption="../report/contact_sheet.rst",
            category="4. Videos",
            labels={"what": "Contact sheet, frames"},
        ),
        video=report(
            FILES.path("figures/contact_sheet.mp4"),
            caption="../report/contact_sheet.rst",
            category="4. Videos",
            labels={"what": "Contact sheet, video"},
        ),
    log:
        FILES.log("make_contact_sheet"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        **SHOWN,
        title=FILES.main.label,
    script:
        "../scripts/make_contact_sheet.py"


# All figures that the configuration allows.
FIGURE_FILES = [
    *(
        FILES.path(f"figures/{name}{kind}")
        for name in FIGURES
        for kind in (".png", ".pdf")
    ),
    *rules.make_contact_sheet.output,
]
# What they are drawn from, but for the suite's videos.
FIGURE_DATA = [
    *TASK_MANIFESTS,
    *expand(rules.attention.output, model=COMPARED),
    *expand(rules.drift.output, model=COMPARED[1:]),
]
