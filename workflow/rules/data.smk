# What comes in: downloads or the tiny world; then latents and embeddings, cached.
#
# Everything that needs the network is `snakemake download`, on a machine that has it. Each folder
# ends with a download.json, which says what was fetched: resolved commit, sizes, checksums.
# No pattern takes pickles, unless it ends in their suffix.
SAMPLED_FILES = ["model_index.json", "transformer/*", "vae/*", "scheduler/*"]
MODEL_FILES = [*SAMPLED_FILES, "text_encoder/*", "tokenizer/*"]
# Wan-I2V is given prompts that the model has embedded: its text encoder is 23 GB of the same.
BASELINE_FILES = [*SAMPLED_FILES, "image_encoder/*", "image_processor/*"]
DATASET_FILES = {
    "encode": ["metadata.csv", "train/*.mp4"],
    "released": ["metadata.csv", "train/*.tensors.pth"],
}[CONFIG.cache.source]

# Section of the configuration: kind of repository, files, and one that other jobs wait for.
REPOSITORIES = {"model": ("model", MODEL_FILES, "model_index.json")}
if not TRAINED:
    REPOSITORIES["lora"] = ("model", [CONFIG.lora.file], CONFIG.lora.file)
if TRAINED:
    REPOSITORIES["dataset"] = ("dataset", DATASET_FILES, "metadata.csv")
if FILES.has_baseline:
    REPOSITORIES["baseline"] = ("model", BASELINE_FILES, "model_index.json")

for section, (kind, files, awaited) in REPOSITORIES.items():
    place = getattr(CONFIG, section)
    if f"{place.path}/download.json" not in FILES.downloads:
        continue

    rule:
        name:
            f"download_{section}"
        output:
            f"{place.path}/download.json",
            f"{place.path}/{awaited}",
        log:
            FILES.log(f"download_{section}"),
        retries: 0  # the client tries again by itself; what it gives up, a person must mend
        localrule: True
        conda:
            "../../envs/pusa.yaml"
        params:
            repo=place.repo,
            revision=place.revision,
            folder=subpath(output[0], parent=True),
            options=[
                *("--kind", kind),
                *(word for pattern in files for word in ("--include", pattern)),
            ],
        shell:
            "HF_HUB_OFFLINE=$PUSA_HUB_OFFLINE python -m pusa download {params.repo:q}"
            " {params.folder:q} --revision {params.revision:q} {params.options:q} 2>&1 | tee {log:q}"


# The prompt suite with its images, and all networks that VBench scores with.
WANTED = {
    "--suite": SUITE if CONFIG.suite.source == "vbench" else None,
    "--weights": CONFIG.score.weights if VBENCH else None,
}

if any(WANTED.values()):

    rule download_vbench:
        output:
            ([f"{SUITE}/download.json", FILES.suite_info] if WANTED["--suite"] else []),
            f"{CONFIG.score.weights}/download.json" if VBENCH else [],
        log:
            FILES.log("download_vbench"),
        retries: 0
        localrule: True
        conda:
            "../../envs/pusa.yaml"
        params:
            folders=[w for option in WANTED.items() if option[1] for w in option],
        shell:
            "HF_HUB_OFFLINE=$PUSA_HUB_OFFLINE python -m pusa download-vbench {params.folders:q}"
            " 2>&1 | tee {log:q}"


if TRAINED and CONFIG.dataset.source == "tiny":

    rule render_dataset:
        output:
            f"{DATASET}/metadata.csv",
        log:
            FILES.log("render_dataset"),
        benchmark:
            FILES.benchmark("render_dataset")
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,
        params:
            clips=CONFIG.dataset.clips,
            folder=subpath(output[0], parent=True),
        shell:
            "python -m pusa tiny dataset {params.folder:q} --stream lora"
            " --clips {params.clips} &> {log:q}"


if CONFIG.suite.source == "tiny":

    rule render_suite:
        output:
            FILES.suite_info,
        log:
            FILES.log("render_suite"),
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,
        params:
            folder=subpath(output[0], parent=True),
            counts=json.dumps(FILES.prompts["all"]),
        shell:
            "python -m pusa tiny suite {params.folder:q} --counts {params.counts:q} &> {log:q}"


if TRAINED:

    rule cache_latents:
        input:
            metadata=f"{DATASET}/metadata.csv",
            model=ancient(f"{MODEL}/model_index.json"),
        output:
            FILES.path("cache/index.json"),
            FILES.path("cache/captions.safetensors"),
        log:
            FILES.log("cache_latents"),
        benchmark:
            FILES.benchmark("cache_latents")
        priority: 2  # training waits for it
        conda:
            "../../envs/pusa.yaml"
        # Decoding videos; a small VAE is little faster on two.
        threads: on(gpu=8, cpu=1)
        resources:
            gpu=on(gpu=1, cpu=0),  # VAE and text encoder, one after the other
            cpus_per_gpu=on(gpu=8, cpu=0),  # threads, which --cores may cap
            mem_mb=on(gpu=64_000, cpu=0),  # the text encoder is 23 GB in float32
            runtime=on(gpu=1440, cpu=60),  # shards that are done are kept by a next attempt
        params:
            dataset=subpath(input.metadata, parent=True),
            model=subpath(input.model, parent=True),
            folder=subpath(output[0], parent=True),
            clip=CLIP,
            cache=CONFIG.cache.model_dump_json(),
            device=CONFIG.device,
        shell:
            "python -m pusa cache-latents {params.dataset:q} {params.model:q} {params.folder:q}"
            " --clip {params.clip:q} --cache {params.cache:q} --device {params.device}"
            " 2>&1 | tee {log:q}"


rule cache_prompts:
    input:
        suite=FILES.suite_info,
        model=ancient(f"{MODEL}/model_index.json"),
    output:
        FILES.path("cache/prompts.safetensors"),
    log:
        FILES.log("cache_prompts"),
    benchmark:
        FILES.benchmark("cache_prompts")
    priority: 10  # before anything long, as it opens every image of the suite
    conda:
        "../../envs/pusa.yaml"
    resources:
        gpu=on(gpu=1, cpu=0),
        mem_mb=on(gpu=64_000, cpu=0),  # the text encoder is 23 GB in float32
        runtime=on(gpu=60, cpu=20),
    params:
        suite=subpath(input.suite, parent=True),
        model=subpath(input.model, parent=True),
        size=IMAGE_SIZE,
        text_tokens=CONFIG.clip.text_tokens,
        negative=(
            ["--negative-prompt", FILES.negative_prompt]
            if FILES.negative_prompt
            else []
        ),
        device=CONFIG.device,
    shell:
        "python -m pusa cache-prompts {params.suite:q} {params.model:q} {output:q}"
        " --size {params.size:q} --text-tokens {params.text_tokens}"
        " {params.negative:q} --device {params.device} &> {log:q}"
