# Nine scores per setting, per video, by weight-free measures.
rule score_videos:
    input:
        suite=SUITE_INFO,
        manifests=[RESULTS / f"samples/{{study}}/{{setting}}/shard{s}.csv" for s in SHARDS],
    output:
        RESULTS / "scores/{study}/{setting}.csv",
    params:
        suite=SUITE,
        size=f"--height {config['clip']['height']} --width {config['clip']['width']}",
    log:
        RESULTS / "logs/score_videos/{study}/{setting}.log",
    benchmark:
        RESULTS / "benchmarks/score_videos/{study}/{setting}.tsv"
    conda:
        "../../envs/pusa.yaml"
    shell:
        "python -m pusa score {params.suite:q} {output:q} {input.manifests:q} {params.size}"
        " &> {log:q}"
