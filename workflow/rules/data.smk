# Model, dataset and prompt suite, from a folder, the hub, or the tiny world; then the caches.
DATASET = Path(config["dataset"]["path"])
SUITE = Path(config["suite"]["path"])
SUITE_INFO = SUITE / "vbench2_i2v_full_info.json"
NEGATIVE_PROMPT = config["sample"].get("negative_prompt_file", [])

if config["model"]["source"] == "hub":

    localrules:
        download_model,

    rule download_model:
        output:
            MODEL / "model_index.json",
        log:
            RESULTS / "logs/download_model.log",
        conda:
            "../../envs/pusa.yaml"
        params:
            repo=config["model"]["repo"],
            revision=config["model"]["revision"],
            folder=MODEL,
        shell:
            "python -m pusa download {params.repo:q} {params.folder:q}"
            " --revision {params.revision:q} --kind model &> {log:q}"


if config["dataset"]["source"] == "hub":

    localrules:
        download_dataset,

    rule download_dataset:
        output:
            DATASET / "metadata.csv",
        log:
            RESULTS / "logs/download_dataset.log",
        conda:
            "../../envs/pusa.yaml"
        params:
            repo=config["dataset"]["repo"],
            revision=config["dataset"]["revision"],
            folder=DATASET,
        shell:
            "python -m pusa download {params.repo:q} {params.folder:q}"
            " --revision {params.revision:q} --kind dataset &> {log:q}"


if config["dataset"]["source"] == "tiny":

    rule render_dataset:
        output:
            DATASET / "metadata.csv",
        log:
            RESULTS / "logs/render_dataset.log",
        benchmark:
            RESULTS / "benchmarks/render_dataset.tsv"
        conda:
            "../../envs/pusa.yaml"
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
        params:
            folder=SUITE,
            # Enough for both studies; each takes the first of every kind.
            counts=" ".join(
                f"--{kind} {max(counts[kind] for counts in PROMPTS.values() if counts)}"
                for kind in config["suite"]["prompts"]
            ),
        shell:
            "python -m pusa tiny suite {params.folder:q} {params.counts} &> {log:q}"


if config["suite"]["source"] == "vbench":

    localrules:
        download_suite,

    rule download_suite:
        output:
            SUITE_INFO,
        log:
            RESULTS / "logs/download_suite.log",
        conda:
            "../../envs/pusa.yaml"
        params:
            folder=SUITE,
        shell:
            "python -m pusa download-suite {params.folder:q} &> {log:q}"


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
    threads: 2  # everything waits for it
    params:
        dataset=DATASET,
        model=MODEL,
        folder=RESULTS / "cache",
        size=clip_options(),
        text_tokens=CLIP["text_tokens"],
        skip="--skip-unusable" if config["cache"]["skip_unusable"] else "",
    shell:
        "python -m pusa cache-latents {params.dataset:q} {params.model:q} {params.folder:q}"
        " {params.size} --text-tokens {params.text_tokens} {params.skip} 2>&1 | tee {log:q}"


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
    params:
        suite=SUITE,
        model=MODEL,
        text_tokens=CLIP["text_tokens"],
        size=size_options(),
        negative=lambda wildcards, input: (
            ["--negative-prompt-file", input.negative_prompt]
            if input.negative_prompt
            else []
        ),
    shell:
        "python -m pusa cache-prompts {params.suite:q} {params.model:q} {output:q}"
        " --text-tokens {params.text_tokens} {params.size} {params.negative:q} &> {log:q}"
