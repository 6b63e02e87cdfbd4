# Tables, claims, effects, overview and pages of videos, which the HTML report (`snakemake --report`)
# shows.
TASK_MANIFESTS = [FILES.task_manifest(task) for task in FILES.tasks]
CAPTION = captions.describe_scale(FILES, "tables")


rule make_tables:
    input:
        experiments=ancient(CONFIG.experiments),
        scores=FILES.score_files("tables"),
        table1=ancient(FILES.published[1]),
        table2=ancient(FILES.published[2]),
        costs=FILES.path("tables/costs.csv"),
    output:
        multiext(FILES.path("tables/table1"), ".csv", ".md", ".tex"),
        multiext(FILES.path("tables/table2"), ".csv", ".md", ".tex"),
        table1=report(
            FILES.path("tables/table1.html"),
            caption="../report/table1.rst",
            category="1. Tables",
            labels={"what": "Table 1"},
        ),
        table2=report(
            FILES.path("tables/table2.html"),
            caption="../report/table2.rst",
            category="1. Tables",
            labels={"what": "Table 2"},
        ),
    log:
        FILES.log("make_tables"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        study=study_params("tables"),
        caption=CAPTION,
        shipped=SHIPPED,
    script:
        "../scripts/make_tables.py"


rule audit:
    input:
        experiments=ancient(CONFIG.experiments),
        table1=ancient(FILES.published[1]),
        table2=ancient(FILES.published[2]),
    output:
        multiext(FILES.path("tables/audit"), ".csv", ".md"),
        html=report(
            FILES.path("tables/audit.html"),
            caption="../report/audit.rst",
            category="1. Tables",
            labels={"what": "Audit of the published tables"},
        ),
    log:
        FILES.log("audit"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        shipped=SHIPPED,
    shell:
        "python -m pusa audit {output.html:q} --table1 {input.table1:q} --table2 {input.table2:q}"
        " --experiments {input.experiments:q} &> {log:q}"


rule claims:
    input:
        claims=ancient(FILES.claims),
        experiments=ancient(CONFIG.experiments),
        scores=FILES.score_files("tables"),
        table1=ancient(FILES.published[1]),
        table2=ancient(FILES.published[2]),
    output:
        multiext(FILES.path("tables/claims"), ".csv", ".md"),
        html=report(
            FILES.path("tables/claims.html"),
            caption="../report/claims.rst",
            category="2. The paper's claims",
            labels={"what": "Claims, on the published numbers and on this run's"},
        ),
    log:
        FILES.log("claims"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        scores=lambda wildcards, input: str(Path(input.scores[0]).parent),
        seed=["--train-seed", SEED] if TRAINED else [],
        subset=json.dumps(FILES.subset("tables")),
        caption=CAPTION,
        shipped=SHIPPED,
    shell:
        "python -m pusa claims {output.html:q} {input.claims:q}"
        " --experiments {input.experiments:q} --scores {params.scores:q} {params.seed}"
        " --table1 {input.table1:q} --table2 {input.table2:q} --subset {params.subset:q}"
        " --caption {params.caption:q} &> {log:q}"


rule price:
    input:
        claims=ancient(FILES.claims),
        experiments=ancient(CONFIG.experiments),
        scores=FILES.score_files("tables"),
        table1=ancient(FILES.published[1]),
        table2=ancient(FILES.published[2]),
    output:
        multiext(FILES.path("tables/price"), ".csv", ".md"),
        html=report(
            FILES.path("tables/price.html"),
            caption="../report/price.rst",
            category="2. The paper's claims",
            labels={"what": "What would decide the claims"},
        ),
    log:
        FILES.log("price"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        config=CONFIG.model_dump(exclude_none=True),
        caption=CAPTION,
        shipped=SHIPPED,
    script:
        "../scripts/price_claims.py"


rule measure_costs:
    input:
        # What was made, and not the benchmarks of it: for a deleted one nothing is made again.
        FILES.tiny_lists,
        FILES.run_files("tables", "training.csv"),
        FILES.manifests("tables"),
        [
            file
            for name in FILES.settings["tables"]
            for file in FILES.setting_score_shards("tables", name)
        ],
        TASK_MANIFESTS,
        FILES.analysed,
    output:
        FILES.path("tables/costs.csv"),
    log:
        FILES.log("measure_costs"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        benchmarks=lambda wildcards: FILES.path("benchmarks"),
        runs=[FILES.trained(run) for run in FILES.runs_of("tables")],
        main_run=FILES.main.run,
        gpus=FILES.gpus,
        usd_per_gpu_hour=CONFIG.cost.usd_per_gpu_hour,
    script:
        "../scripts/measure_costs.py"


rule record_provenance:
    input:
        tables=rules.make_tables.output,
        costs=rules.measure_costs.output[0],
        manifests=FILES.manifests("tables"),
        scores=FILES.score_files("tables"),
        runs=FILES.run_files("tables", "run.json"),
        downloads=FILES.downloads,
    output:
        multiext(FILES.path("tables/provenance"), ".json", ".md"),
        html=report(
            FILES.path("tables/provenance.html"),
            caption="../report/provenance.rst",
            category="5. Provenance",
            labels={"what": "Where the numbers come from"},
        ),
    log:
        FILES.log("record_provenance"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        config=CONFIG.model_dump(exclude_none=True),
        negative_prompt=FILES.negative_prompt,
        benchmarks=FILES.path("benchmarks"),
    script:
        "../scripts/record_provenance.py"


rule measure_effects:
    input:
        claims=ancient(FILES.claims),
        experiments=ancient(CONFIG.experiments),
        scores=lambda wildcards: FILES.score_files(wildcards.study),
        losses=lambda wildcards: FILES.run_files(wildcards.study, "validation.csv"),
    output:
        multiext(FILES.path("effects/{study}"), ".csv", ".md"),
        html=report(
            FILES.path("effects/{study}.html"),
            caption="../report/effects.rst",
            category="2. The paper's claims",
            labels={"what": "Effects ({study})"},
        ),
    log:
        FILES.log("measure_effects", "{study}"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        study=lambda wildcards: study_params(wildcards.study),
        shipped=SHIPPED,
        runs=FILES.path("trained"),
        caption=lambda wildcards: captions.describe_scale(FILES, wildcards.study),
    script:
        "../scripts/measure_effects.py"


rule make_overview:
    input:
        tables=rules.make_tables.output,
        claims=rules.claims.output,
        costs=rules.measure_costs.output,
        provenance=rules.record_provenance.output,
        effects=FILES.path("effects/tables.csv"),
    output:
        FILES.path("tables/overview.md"),
        html=report(
            FILES.path("tables/overview.html"),
            caption="../report/overview.rst",
            category="0. Overview",
            labels={"what": "Overview"},
        ),
    log:
        FILES.log("make_overview"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        tables=subpath(output.html, parent=True),
        caption=CAPTION,
    script:
        "../scripts/make_overview.py"


# Pages of the report by the lists of their videos, with their titles: of a video itself it would
# show no more than a link to save it.
VIDEO_PAGES = {
    "models": (
        [f for s in FILES.shown for f in FILES.setting_manifests("tables", s.name)],
        "The same image and prompt through every model",
    ),
    **(
        {"tasks": (TASK_MANIFESTS, "The tasks of Figures 7 to 12")}
        if TASK_MANIFESTS
        else {}
    ),
}


rule gallery_page:
    input:
        lambda wildcards: VIDEO_PAGES[wildcards.page][0],
    output:
        report(
            FILES.path("figures/videos_{page}.html"),
            caption="../report/videos.rst",
            category="4. Videos",
            labels=lambda wildcards: {"what": VIDEO_PAGES[wildcards.page][1]},
        ),
    log:
        FILES.log("gallery_page", "{page}"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        title=lambda wildcards: VIDEO_PAGES[wildcards.page][1],
        folders=folders_of,
    shell:
        "python -m pusa gallery {output:q} {params.folders:q} --title {params.title:q} &> {log:q}"


rule gallery:
    input:
        FILES.manifests("tables"),
        TASK_MANIFESTS,
    output:
        directory(FILES.path(GALLERY)),
    log:
        FILES.log("gallery"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        **SMALL,
    params:
        title=f"Videos of {CONFIG.results}",
        folders=folders_of,
        shown=[word for s in FILES.shown for word in ("--show", s.name)],
    shell:
        "python -m pusa gallery {output:q} {params.folders:q} --title {params.title:q}"
        " {params.shown:q} &> {log:q}"


# A few videos before hundreds of GPU-hours: the same images and prompts through the base, Wan-I2V
# and the adapted model.
use rule gallery as gallery_first_look with:
    input:
        FILES.manifests("first_look"),
    output:
        directory(FILES.first_look),
    log:
        FILES.log("gallery_first_look"),
    params:
        title="A first look",
        folders=folders_of,
        shown=[word for s in FILES.compared for word in ("--show", s.name)],
