# Nine scores per setting, per video, by weight-free measures.
rule score_videos:
    input:
        suite=SUITE_INFO,
        manifests=[
            RESULTS / f"samples/{{study}}/{{setting}}/shard{s}.csv" for s in SHARDS
        ],
    output:
        RESULTS / "scores/{study}/{setting}.csv",
    log:
        RESULTS / "logs/score_videos/{study}/{setting}.log",
    benchmark:
        RESULTS / "benchmarks/score_videos/{study}/{setting}.tsv"
    conda:
        "../../envs/pusa.yaml"
    params:
        suite=SUITE,
        size=size_options(),
    shell:
        "python -m pusa score {params.suite:q} {output:q} {input.manifests:q} {params.size}"
        " &> {log:q}"
