# The embedded model, retrained from nothing: `snakemake --cores 2 tiny_wan`, hours on
# two CPU cores. The result is in results/tiny_wan/model; copy it to pusa/tiny/model to ship it.
TINY = Path("results/tiny_wan")
TINY_CLIPS = 7000
TINY_VAE_CLIPS = 3000
TINY_VAE_STEPS = 3800
TINY_BASE_STEPS = 4000


rule tiny_wan:
    input:
        TINY / "model/model_index.json",


rule render_tiny_world:
    output:
        TINY / "dataset/metadata.csv",
    log:
        TINY / "logs/render_tiny_world.log",
    conda:
        "../../envs/pusa.yaml"
    threads: 2
    params:
        folder=TINY / "dataset",
        clips=TINY_CLIPS,
    shell:
        "python -m pusa tiny dataset {params.folder:q} --stream base --clips {params.clips}"
        " --workers {threads} 2>&1 | tee {log:q}"


rule train_tiny_vae:
    input:
        TINY / "dataset/metadata.csv",
    output:
        directory(TINY / "model/vae"),
    log:
        TINY / "logs/train_tiny_vae.log",
    conda:
        "../../envs/pusa.yaml"
    threads: 2
    params:
        dataset=TINY / "dataset",
        clips=TINY_VAE_CLIPS,
        steps=TINY_VAE_STEPS,
    shell:
        "python -m pusa tiny vae {params.dataset:q} {output:q} --clips {params.clips}"
        " --steps {params.steps} 2>&1 | tee {log:q}"


rule write_tiny_text_encoder:
    output:
        directory(TINY / "model/tokenizer"),
        directory(TINY / "model/text_encoder"),
    log:
        TINY / "logs/write_tiny_text_encoder.log",
    conda:
        "../../envs/pusa.yaml"
    params:
        model=TINY / "model",
    shell:
        "python -m pusa tiny text {params.model:q} 2>&1 | tee {log:q}"


rule cache_tiny_latents:
    input:
        TINY / "dataset/metadata.csv",
        rules.train_tiny_vae.output,
        rules.write_tiny_text_encoder.output,
    output:
        TINY / "cache/index.json",
    log:
        TINY / "logs/cache_tiny_latents.log",
    conda:
        "../../envs/pusa.yaml"
    threads: 2
    params:
        dataset=TINY / "dataset",
        model=TINY / "model",
        folder=TINY / "cache",
    shell:
        "python -m pusa cache-latents {params.dataset:q} {params.model:q} {params.folder:q}"
        " --frames 33 --height 64 --width 64 --text-tokens 20 2>&1 | tee {log:q}"


rule train_tiny_base:
    input:
        TINY / "cache/index.json",
    output:
        TINY / "model/model_index.json",
        directory(TINY / "model/transformer"),
        directory(TINY / "model/scheduler"),
    log:
        TINY / "logs/train_tiny_base.log",
    conda:
        "../../envs/pusa.yaml"
    threads: 2
    params:
        cache=TINY / "cache",
        model=TINY / "model",
        steps=TINY_BASE_STEPS,
    shell:
        "python -m pusa tiny base {params.cache:q} {params.model:q} --steps {params.steps}"
        " 2>&1 | tee {log:q}"


# The paper's baseline in miniature, trained from the embedded model beside the LoRAs.
if WITH_BASELINE and config["baseline"]["source"] == "tiny":

    rule train_tiny_baseline:
        input:
            dataset=DATASET / "metadata.csv",
            cache=RESULTS / "cache/index.json",
            model=MODEL / "model_index.json",
        output:
            BASELINE / "model_index.json",
            directory(BASELINE / "transformer"),
        log:
            RESULTS / "logs/train_tiny_baseline.log",
        benchmark:
            RESULTS / "benchmarks/train_tiny_baseline.tsv"
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,
        params:
            dataset=DATASET,
            cache=RESULTS / "cache",
            model=MODEL,
            folder=BASELINE,
            options=(
                f"--steps {config['baseline']['steps']} --seed {TRAIN['seed']}"
                f" --validation-clips {TRAIN['validation_clips']} {clip_options()}"
            ),
        shell:
            "python -m pusa tiny baseline {params.dataset:q} {params.cache:q} {params.model:q}"
            " {params.folder:q} {params.options} 2>&1 | tee {log:q}"
