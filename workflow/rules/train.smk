# One training job per run (model, rank, seed), whose iterations are several outputs; then
# merged checkpoints, removed as soon as their samples are made.
rule train_lora:
    input:
        cache=RESULTS / "cache/index.json",
        model=MODEL / "model_index.json",
    output:
        loras=[
            RESULTS / f"lora/{{run}}/iteration_{i}.safetensors"
            for i in TRAIN["iterations"]
        ],
        training=RESULTS / "lora/{run}/training.csv",
        validation=RESULTS / "lora/{run}/validation.csv",
    log:
        RESULTS / "logs/train_lora/{run}.log",
    benchmark:
        RESULTS / "benchmarks/train_lora/{run}.tsv"
    conda:
        "../../envs/pusa.yaml"
    threads: TRAIN["processes"]
    params:
        cache=RESULTS / "cache",
        transformer=MODEL / "transformer",
        folder=lambda wildcards: RESULTS / "lora" / wildcards.run,
        run=run_options,
        iterations=" ".join(f"--iteration {i}" for i in TRAIN["iterations"]),
        processes=TRAIN["processes"],
        options=(
            f"--learning-rate {TRAIN['learning_rate']} --warmup {TRAIN['warmup']}"
            f" --total-batch {TRAIN['total_batch']} --micro-batch {TRAIN['micro_batch']}"
            f" --timesteps {TRAIN['timesteps']} --weighting {TRAIN['weighting']}"
            f" --shift {TRAIN['shift']} --validation-clips {TRAIN['validation_clips']}"
            f" --dtype {TRAIN['dtype']}"
            f"{' --gradient-checkpointing' if TRAIN['gradient_checkpointing'] else ''}"
        ),
    shell:
        "torchrun --standalone --nproc-per-node {params.processes} -m pusa train-lora"
        " {params.cache:q} {params.transformer:q} {params.folder:q} {params.run}"
        " {params.iterations} {params.options} 2>&1 | tee {log:q}"


rule merge_lora:
    input:
        lora=lora_of,
        model=MODEL / "model_index.json",
    output:
        # A folder per setting, though some settings share weights: were it shared, making one
        # setting's videos again would make the others' too.
        temp(directory(RESULTS / "merged/{study}/{setting}")),
    log:
        RESULTS / "logs/merge_lora/{study}/{setting}.log",
    benchmark:
        RESULTS / "benchmarks/merge_lora/{study}/{setting}.tsv"
    conda:
        "../../envs/pusa.yaml"
    params:
        transformer=MODEL / "transformer",
        alpha=lambda wildcards: setting_of(wildcards).alpha,
    shell:
        "python -m pusa merge-lora {params.transformer:q} {input.lora:q} {output:q}"
        " --scale {params.alpha} &> {log:q}"
