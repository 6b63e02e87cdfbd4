# Videos of the prompt suite, one job per setting and shard. Only the manifest is an output:
# videos lie beside it, so that an interrupted job keeps those it finished.
rule sample_videos:
    input:
        suite=SUITE_INFO,
        prompts=RESULTS / "cache/prompts.safetensors",
        model=lambda wildcards: model_of(wildcards) / "model_index.json",
        adapted=adapted_weights,
        # What scores the videos is looked at before days are spent on making them.
        checked=ancient(RESULTS / "scores/vbench_checked") if VBENCH else [],
    output:
        RESULTS / "samples/{study}/{setting}/shard{shard}.csv",
    log:
        RESULTS / "logs/sample_videos/{study}/{setting}/shard{shard}.log",
    benchmark:
        RESULTS / "benchmarks/sample_videos/{study}/{setting}/shard{shard}.tsv"
    conda:
        "../../envs/pusa.yaml"
    threads: on(gpu=4, cpu=1)
    resources:
        gpu=on(gpu=1, cpu=0),
        cpus_per_gpu=on(gpu=4, cpu=0),  # threads, which --cores may cap
        mem_mb=on(gpu=64_000, cpu=0),  # reads the transformer, 28 GB in bfloat16
        # A next attempt keeps the videos that are done; most settings have up to 20 steps.
        runtime=lambda wildcards: on(
            gpu=max(480, 24 * setting_of(wildcards).steps), cpu=60
        ),
    params:
        suite=SUITE,
        model=model_of,
        transformer=transformer_options,
        counts=lambda wildcards: count_options(
            sampled_prompts(wildcards.study, wildcards.setting)
        ),
        setting=setting_options,
        shards=lambda wildcards: shards(wildcards.study, wildcards.setting),
        size=clip_options(),
        options=(
            f"--samples {SAMPLE['samples']} --batch-size {SAMPLE['batch_size']}"
            f" --shift {SAMPLE['shift']} --seed {SAMPLE['seed']} --dtype {SAMPLE['dtype']} --device {config['device']}"
        ),
    shell:
        "python -m pusa sample-suite {params.suite:q} {params.model:q} {output:q}"
        " {params.transformer:q} --prompts {input.prompts:q} {params.counts}"
        " {params.setting} --shard {wildcards.shard} --shards {params.shards}"
        " {params.size} {params.options} &> {log:q}"
