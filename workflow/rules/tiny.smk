# The embedded model, retrained from nothing: `snakemake --cores 2 tiny_wan`, hours on
# two CPU cores. The result is in results/tiny_wan/model; copy it to pusa/tiny/model to ship it.
TINY = "results/tiny_wan"
TINY_CLIPS = 20_000
TINY_VAE_CLIPS = 4000
TINY_VAE_STEPS = 4000
TINY_BASE_STEPS = 30_000


rule tiny_wan:
    input:
        f"{TINY}/model/model_index.json",


rule render_tiny_world:
    output:
        f"{TINY}/dataset/metadata.csv",
    log:
        f"{TINY}/logs/render_tiny_world.log",
    conda:
        "../../envs/pusa.yaml"
    threads: 2
    params:
        folder=subpath(output[0], parent=True),
        clips=TINY_CLIPS,
    shell:
        "python -m pusa tiny dataset {params.folder:q} --stream base --clips {params.clips}"
        " --workers {threads} 2>&1 | tee {log:q}"


rule train_tiny_vae:
    input:
        f"{TINY}/dataset/metadata.csv",
    output:
        directory(f"{TINY}/model/vae"),
    log:
        f"{TINY}/logs/train_tiny_vae.log",
    conda:
        "../../envs/pusa.yaml"
    threads: 2
    params:
        dataset=subpath(input[0], parent=True),
        clips=TINY_VAE_CLIPS,
        steps=TINY_VAE_STEPS,
        # Not an output: those are deleted when a job starts or fails.
        checkpoint=f"{TINY}/training/vae.safetensors",
    shell:
        "python -m pusa tiny vae {params.dataset:q} {output:q} --clips {params.clips}"
        " --steps {params.steps} --checkpoint {params.checkpoint:q} 2>&1 | tee {log:q}"


rule write_tiny_text_encoder:
    output:
        directory(f"{TINY}/model/tokenizer"),
        directory(f"{TINY}/model/text_encoder"),
    log:
        f"{TINY}/logs/write_tiny_text_encoder.log",
    conda:
        "../../envs/pusa.yaml"
    params:
        model=subpath(output[0], parent=True),
    shell:
        "python -m pusa tiny text {params.model:q} 2>&1 | tee {log:q}"


rule cache_tiny_latents:
    input:
        f"{TINY}/dataset/metadata.csv",
        rules.train_tiny_vae.output,
        rules.write_tiny_text_encoder.output,
    output:
        f"{TINY}/cache/index.json",
    log:
        f"{TINY}/logs/cache_tiny_latents.log",
    conda:
        "../../envs/pusa.yaml"
    threads: 2
    params:
        dataset=subpath(input[0], parent=True),
        model=subpath(input[1], parent=True),
        folder=subpath(output[0], parent=True),
    shell:
        "python -m pusa cache-latents {params.dataset:q} {params.model:q} {params.folder:q}"
        " --frames 33 --height 64 --width 64 --text-tokens 20 2>&1 | tee {log:q}"


rule train_tiny_base:
    input:
        f"{TINY}/cache/index.json",
    output:
        f"{TINY}/model/model_index.json",
        directory(f"{TINY}/model/transformer"),
        directory(f"{TINY}/model/scheduler"),
    log:
        f"{TINY}/logs/train_tiny_base.log",
    conda:
        "../../envs/pusa.yaml"
    threads: 2
    params:
        cache=subpath(input[0], parent=True),
        model=subpath(output[0], parent=True),
        steps=TINY_BASE_STEPS,
        checkpoint=f"{TINY}/training/base.safetensors",
    shell:
        "python -m pusa tiny base {params.cache:q} {params.model:q} --steps {params.steps}"
        " --checkpoint {params.checkpoint:q} 2>&1 | tee {log:q}"


# The paper's baseline in miniature, trained from the embedded model beside the LoRAs.
if FILES.trains_baseline:

    rule train_tiny_baseline:
        input:
            dataset=f"{DATASET}/metadata.csv",
            cache=FILES.path("cache/index.json"),
            model=ancient(f"{MODEL}/model_index.json"),
        output:
            f"{CONFIG.baseline.path}/model_index.json",
            directory(f"{CONFIG.baseline.path}/transformer"),
        log:
            FILES.log("train_tiny_baseline"),
        benchmark:
            FILES.benchmark("train_tiny_baseline")
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,
        params:
            dataset=subpath(input.dataset, parent=True),
            cache=subpath(input.cache, parent=True),
            model=subpath(input.model, parent=True),
            folder=subpath(output[0], parent=True),
            size=SIZE,
            options=[
                *("--steps", CONFIG.baseline.steps, "--seed", TRAIN.seed),
                *("--validation-clips", TRAIN.validation_clips),
            ],
            # Not an output: those are deleted when a job starts or fails.
            checkpoint=FILES.path("training", "baseline.safetensors"),
        shell:
            "python -m pusa tiny baseline {params.dataset:q} {params.cache:q} {params.model:q}"
            " {params.folder:q} --size {params.size:q} {params.options}"
            " --checkpoint {params.checkpoint:q} 2>&1 | tee {log:q}"
