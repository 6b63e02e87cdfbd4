# Videos of the prompt suite, one job per setting and shard. Only the manifest is an output:
# videos lie beside it, so that an interrupted job keeps those it finished.
rule sample_videos:
    input:
        suite=SUITE_INFO,
        prompts=RESULTS / "cache/prompts.safetensors",
        model=MODEL / "model_index.json",
        merged=merged_weights,
    output:
        RESULTS / "samples/{study}/{setting}/shard{shard}.csv",
    log:
        RESULTS / "logs/sample_videos/{study}/{setting}/shard{shard}.log",
    benchmark:
        RESULTS / "benchmarks/sample_videos/{study}/{setting}/shard{shard}.tsv"
    conda:
        "../../envs/pusa.yaml"
    params:
        suite=SUITE,
        model=MODEL,
        transformer=transformer_of,
        counts=lambda wildcards: prompt_options(wildcards.study),
        setting=setting_options,
        shards=len(SHARDS),
        size=clip_options(),
        options=(
            f"--samples {SAMPLE['samples']} --batch-size {SAMPLE['batch_size']}"
            f" --guidance-scale {SAMPLE['guidance_scale']} --shift {SAMPLE['shift']}"
            f" --seed {SAMPLE['seed']} --dtype {SAMPLE['dtype']}"
        ),
    shell:
        "python -m pusa sample-suite {params.suite:q} {params.model:q} {output:q}"
        " --transformer {params.transformer:q} --prompts {input.prompts:q} {params.counts}"
        " {params.setting} --shard {wildcards.shard} --shards {params.shards}"
        " {params.size} {params.options} &> {log:q}"
