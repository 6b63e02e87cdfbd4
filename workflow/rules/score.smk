# Nine scores per video, gathered into a file per setting. A job scores what one or several sampling
# jobs made: by VBench's own code on one dimension, in an environment of its own, or by weight-free
# measures on all of them at once.
if VBENCH:

    # Days of sampling lie between the start and the first score, so what scoring needs is looked
    # at first.
    rule check_vbench:
        input:
            suite=SUITE_INFO,
            weights=WEIGHTS / "download.json",
        output:
            touch(RESULTS / "scores/vbench_checked"),
        log:
            RESULTS / "logs/check_vbench.log",
        priority: 100
        retries: 0
        localrule: True
        conda:
            "../../envs/vbench.yaml"
        params:
            python=vbench_python(),
            suite=SUITE,
            weights=WEIGHTS,
            options=f"{size_options()} --samples {SAMPLE['samples']}",
            missing=f"error: {vbench_python()} does not exist: VBench runs in an environment of its "
            "own, which `make vbench` makes in .venv-vbench; score.environment says where it is",
        shell:
            "(command -v {params.python:q} > /dev/null || {{ echo {params.missing:q}; exit 1; }};"
            " {params.python:q} -m pusa check-vbench {params.suite:q} --weights {params.weights:q}"
            " {params.options}) 2>&1 | tee {log:q}"

    rule score_videos:
        input:
            suite=SUITE_INFO,
            checked=RESULTS / "scores/vbench_checked",
            manifests=scored_manifests,
        output:
            multiext(
                str(RESULTS / "scores/{study}/{setting}/{dimension}/shard{shard}"),
                csv=".csv",
                record=".json",
            ),
        log:
            RESULTS / "logs/score_videos/{study}/{setting}/{dimension}/shard{shard}.log",
        benchmark:
            RESULTS
            / "benchmarks/score_videos/{study}/{setting}/{dimension}/shard{shard}.tsv"
        conda:
            "../../envs/vbench.yaml"
        threads: on(gpu=4, cpu=1)
        resources:
            gpu=on(gpu=1, cpu=0),
            cpus_per_gpu=on(gpu=4, cpu=0),
            mem_mb=on(gpu=32_000, cpu=0),
            runtime=on(gpu=480, cpu=240),
        params:
            python=vbench_python(),
            suite=SUITE,
            weights=WEIGHTS,
            size=clip_options(),
            device=config["device"],
        shell:
            "{params.python:q} -W ignore -m pusa score-vbench {params.suite:q} {output.csv:q}"
            " {input.manifests:q} --dimension {wildcards.dimension} --weights {params.weights:q}"
            " {params.size} --device {params.device} &> {log:q}"

else:

    rule score_videos:
        input:
            suite=SUITE_INFO,
            manifests=scored_manifests,
        output:
            multiext(
                str(RESULTS / "scores/{study}/{setting}/{dimension}/shard{shard}"),
                csv=".csv",
                record=".json",
            ),
        log:
            RESULTS / "logs/score_videos/{study}/{setting}/{dimension}/shard{shard}.log",
        benchmark:
            RESULTS
            / "benchmarks/score_videos/{study}/{setting}/{dimension}/shard{shard}.tsv"
        conda:
            "../../envs/pusa.yaml"
        resources:
            mem_mb=on(gpu=8_000, cpu=0),  # one video at a time
            runtime=on(gpu=240, cpu=60),
        params:
            suite=SUITE,
            size=clip_options(),
        shell:
            "python -m pusa score {params.suite:q} {output.csv:q} {input.manifests:q}"
            " {params.size} &> {log:q}"


rule gather_scores:
    input:
        suite=SUITE_INFO,
        manifests=lambda wildcards: setting_shards(wildcards.study, wildcards.setting),
        scores=lambda wildcards: score_shards(wildcards.study, wildcards.setting),
        records=lambda wildcards: [
            file.with_suffix(".json")
            for file in score_shards(wildcards.study, wildcards.setting)
        ],
    output:
        multiext(str(RESULTS / "scores/{study}/{setting}"), csv=".csv", record=".json"),
    log:
        RESULTS / "logs/gather_scores/{study}/{setting}.log",
    localrule: True
    conda:
        "../../envs/pusa.yaml"
    params:
        suite=SUITE,
        samples=SAMPLE["samples"],
        counts=lambda wildcards: count_options(
            sampled_prompts(wildcards.study, wildcards.setting)
        ),
        scores=lambda wildcards, input: [
            word for file in input.scores for word in ("--scores", file)
        ],
    shell:
        "python -m pusa gather-scores {params.suite:q} {output.csv:q} {input.manifests:q}"
        " {params.scores:q} --samples {params.samples} {params.counts} &> {log:q}"
