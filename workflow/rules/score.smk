# Nine scores per video, by weight-free measures: a job for each job of the sampling.
rule score_videos:
    input:
        suite=SUITE_INFO,
        manifest=RESULTS / "samples/{study}/{setting}/shard{shard}.csv",
    output:
        RESULTS / "scores/{study}/{setting}/shard{shard}.csv",
    log:
        RESULTS / "logs/score_videos/{study}/{setting}/shard{shard}.log",
    benchmark:
        RESULTS / "benchmarks/score_videos/{study}/{setting}/shard{shard}.tsv"
    conda:
        "../../envs/pusa.yaml"
    resources:
        mem_mb=on(gpu=8_000, cpu=0),  # one video at a time
        runtime=on(gpu=240, cpu=60),  # for sample.videos_per_job, with time to spare
    params:
        suite=SUITE,
        size=size_options(),
    shell:
        "python -m pusa score {params.suite:q} {input.manifest:q} {output:q} {params.size}"
        " &> {log:q}"


rule gather_scores:
    input:
        lambda wildcards: setting_shards("scores", wildcards.study, wildcards.setting),
    output:
        RESULTS / "scores/{study}/{setting}.csv",
    log:
        RESULTS / "logs/gather_scores/{study}/{setting}.log",
    localrule: True
    conda:
        "../../envs/pusa.yaml"
    shell:
        "awk 'FNR > 1 || NR == 1' {input:q} > {output:q} 2> {log:q}"
