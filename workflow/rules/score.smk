# Nine scores per video, gathered into a file per setting. A job scores what one or several sampling
# jobs made: by VBench's own code on one dimension, in an environment of its own, or by weight-free
# measures on all of them at once.

# In the image, of VBench's conda environment, or of its virtual one.
if APPTAINER:
    VBENCH_PYTHON = "vbench-python"
else:
    VBENCH_PYTHON = "python" if CONDA else f"{CONFIG.score.environment}/bin/python"


if VBENCH:

    # Days of sampling lie between the start and the first score, so what scoring needs is looked
    # at first.
    rule check_vbench:
        input:
            suite=FILES.suite_info,
            weights=f"{CONFIG.score.weights}/download.json",
        output:
            touch(FILES.path("scores/vbench_checked")),
        log:
            FILES.log("check_vbench"),
        priority: 100
        retries: 0
        localrule: True
        conda:
            "../../envs/vbench.yaml"
        params:
            python=VBENCH_PYTHON,
            suite=subpath(input.suite, parent=True),
            weights=subpath(input.weights, parent=True),
            size=IMAGE_SIZE,
            samples=CONFIG.sample.samples,
            missing=f"error: {VBENCH_PYTHON} does not exist: VBench runs in an environment of its "
            "own, which `make vbench` makes in .venv-vbench; score.environment says where it is",
        shell:
            "(command -v {params.python:q} > /dev/null || {{ echo {params.missing:q}; exit 1; }};"
            " {params.python:q} -m pusa check-vbench {params.suite:q} --weights {params.weights:q}"
            " --size {params.size:q} --samples {params.samples}) 2>&1"
            " | tee {log:q}"


rule score_videos:
    input:
        suite=FILES.suite_info,
        checked=FILES.path("scores/vbench_checked") if VBENCH else [],
        manifests=scored_manifests,
    output:
        multiext(
            FILES.score_shard(
                "{study}", "{setting}", "{dimension}", "{shard}"
            ).removesuffix(".csv"),
            csv=".csv",
            record=".json",
        ),
    log:
        FILES.log("score_videos", "{study}", "{setting}", "{dimension}", "shard{shard}"),
    benchmark:
        FILES.benchmark(
            "score_videos", "{study}", "{setting}", "{dimension}", "shard{shard}"
        )
    conda:
        "../../envs/vbench.yaml" if VBENCH else "../../envs/pusa.yaml"
    threads: on(gpu=4, cpu=1) if VBENCH else 1
    resources:
        gpu=on(gpu=1, cpu=0) if VBENCH else 0,
        cpus_per_gpu=on(gpu=4, cpu=0) if VBENCH else 0,
        mem_mb=on(gpu=32_000 if VBENCH else 8_000, cpu=0),  # one video at a time
        runtime=on(gpu=480, cpu=240) if VBENCH else on(gpu=240, cpu=60),
    params:
        python=VBENCH_PYTHON if VBENCH else "python",
        options="-W ignore" if VBENCH else "",
        suite=subpath(input.suite, parent=True),
        size=SIZE,
        vbench=lambda wildcards: (
            f"--dimension {wildcards.dimension} --device {CONFIG.device} --weights"
            if VBENCH
            else ""
        ),
        weights=[CONFIG.score.weights] if VBENCH else [],
        # Of an earlier run, which may have had fewer prompts or samples; no input, as what comes of
        # this job takes its place.
        earlier=lambda wildcards: FILES.score_file(wildcards.study, wildcards.setting),
    shell:
        "{params.python:q} {params.options} -m pusa score {params.suite:q} {output.csv:q}"
        " {input.manifests:q} --size {params.size:q} --earlier {params.earlier:q}"
        " {params.vbench} {params.weights:q} &> {log:q}"


rule gather_scores:
    input:
        suite=FILES.suite_info,
        manifests=lambda wildcards: FILES.setting_manifests(
            wildcards.study, wildcards.setting
        ),
        scores=lambda wildcards: FILES.setting_score_shards(
            wildcards.study, wildcards.setting
        ),
        records=lambda wildcards: [
            file.removesuffix(".csv") + ".json"
            for file in FILES.setting_score_shards(wildcards.study, wildcards.setting)
        ],
    output:
        scores=FILES.score_file("{study}", "{setting}"),
        record=FILES.score_file("{study}", "{setting}").removesuffix(".csv") + ".json",
    log:
        FILES.log("gather_scores", "{study}", "{setting}"),
    localrule: True
    conda:
        "../../envs/pusa.yaml"
    params:
        suite=subpath(input.suite, parent=True),
        samples=CONFIG.sample.samples,
        counts=lambda wildcards: FILES.sampled(wildcards.study, wildcards.setting),
    script:
        "../scripts/gather_scores.py"
