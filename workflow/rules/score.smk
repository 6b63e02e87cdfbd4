# Nine scores per setting, per video, by weight-free measures.
rule score_videos:
    input:
        suite=SUITE_INFO,
        manifests=lambda wildcards: setting_manifests(
            wildcards.study, wildcards.setting
        ),
    output:
        RESULTS / "scores/{study}/{setting}.csv",
    log:
        RESULTS / "logs/score_videos/{study}/{setting}.log",
    benchmark:
        RESULTS / "benchmarks/score_videos/{study}/{setting}.tsv"
    conda:
        "../../envs/pusa.yaml"
    resources:
        mem_mb=on(gpu=4_000, cpu=0),  # one video at a time
        runtime=on(gpu=720, cpu=60),
    params:
        suite=SUITE,
        samples=lambda wildcards: RESULTS
        / "samples"
        / wildcards.study
        / wildcards.setting,
        size=size_options(),
        shards=lambda wildcards: shards(wildcards.study, wildcards.setting),
    shell:
        "python -m pusa score {params.suite:q} {params.samples:q} {output:q} {params.size}"
        " --shards {params.shards} &> {log:q}"
