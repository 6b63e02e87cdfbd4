# Dataset and prompt suite of the tiny world, where they are asked for; then the caches.
NEGATIVE_PROMPT = SAMPLE.get("negative_prompt_file", [])

if TRAINED and config["dataset"]["source"] == "tiny":

    rule render_dataset:
        output:
            DATASET / "metadata.csv",
        log:
            RESULTS / "logs/render_dataset.log",
        benchmark:
            RESULTS / "benchmarks/render_dataset.tsv"
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,
        params:
            clips=config["dataset"]["clips"],
            folder=DATASET,
        shell:
            "python -m pusa tiny dataset {params.folder:q} --stream lora"
            " --clips {params.clips} &> {log:q}"


if config["suite"]["source"] == "tiny":

    rule render_suite:
        output:
            SUITE_INFO,
        log:
            RESULTS / "logs/render_suite.log",
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,
        params:
            folder=SUITE,
            counts=count_options(PROMPTS["all"]),
        shell:
            "python -m pusa tiny suite {params.folder:q} {params.counts} &> {log:q}"


if TRAINED:

    rule cache_latents:
        input:
            metadata=DATASET / "metadata.csv",
            model=MODEL / "model_index.json",
        output:
            RESULTS / "cache/index.json",
            RESULTS / "cache/captions.safetensors",
        log:
            RESULTS / "logs/cache_latents.log",
        benchmark:
            RESULTS / "benchmarks/cache_latents.tsv"
        conda:
            "../../envs/pusa.yaml"
        threads: on(gpu=8, cpu=2)  # decoding videos; on a CPU everything waits for it
        resources:
            gpu=on(gpu=1, cpu=0),  # VAE and text encoder, one after the other
            cpus_per_gpu=on(gpu=8, cpu=0),  # threads, which --cores may cap
            mem_mb=on(gpu=64_000, cpu=0),  # the text encoder is 23 GB in float32
            runtime=on(gpu=1440, cpu=60),  # shards that are done are kept by a next attempt
        params:
            dataset=DATASET,
            model=MODEL,
            folder=RESULTS / "cache",
            size=clip_options(),
            text_tokens=CLIP["text_tokens"],
            source=config["cache"]["source"],
            device=config["device"],
            skip="--skip-unusable" if config["cache"]["skip_unusable"] else "",
        shell:
            "python -m pusa cache-latents {params.dataset:q} {params.model:q} {params.folder:q}"
            " --source {params.source} {params.size} --text-tokens {params.text_tokens}"
            " --device {params.device} {params.skip} 2>&1 | tee {log:q}"


rule cache_prompts:
    input:
        suite=SUITE_INFO,
        model=MODEL / "model_index.json",
        negative_prompt=NEGATIVE_PROMPT,
    output:
        RESULTS / "cache/prompts.safetensors",
    log:
        RESULTS / "logs/cache_prompts.log",
    benchmark:
        RESULTS / "benchmarks/cache_prompts.tsv"
    priority: 10  # before anything long, as it opens every image of the suite
    conda:
        "../../envs/pusa.yaml"
    resources:
        gpu=on(gpu=1, cpu=0),
        mem_mb=on(gpu=64_000, cpu=0),  # the text encoder is 23 GB in float32
        runtime=on(gpu=60, cpu=20),
    params:
        suite=SUITE,
        model=MODEL,
        text_tokens=CLIP["text_tokens"],
        device=config["device"],
        size=size_options(),
        negative=lambda wildcards, input: (
            ["--negative-prompt-file", input.negative_prompt]
            if input.negative_prompt
            else []
        ),
    shell:
        "python -m pusa cache-prompts {params.suite:q} {params.model:q} {output:q}"
        " --text-tokens {params.text_tokens} {params.size} {params.negative:q}"
        " --device {params.device} &> {log:q}"
