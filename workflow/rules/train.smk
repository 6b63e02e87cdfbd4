# One training job per run (model, rank, seed), whose iterations are several outputs; then
# merged checkpoints, removed as soon as their samples are made.
# At a SIGTERM the trainer ends its iteration and saves, for which torchrun gives it ten minutes.
TORCHRUN = f"torchrun --shutdown-timeout 600 --nproc-per-node {TRAIN['processes']}"

if TRAIN["nodes"] > 1:
    # The rule's shell runs on the first node of the allocation, which is where they meet.
    LAUNCH = (
        f"srun --nodes {TRAIN['nodes']} --ntasks {TRAIN['nodes']} --ntasks-per-node 1"
        f" --cpus-per-task {on(gpu=8, cpu=1) * TRAIN['processes']}"
        f"{on(gpu=' --gpus-per-node ' + str(TRAIN['processes']), cpu='')}"
        f" {TORCHRUN} --nnodes {TRAIN['nodes']}"
        ' --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID"'
        # A port of its own, should another training start on the same node.
        ' --rdzv-endpoint "$(hostname):$((20000 + SLURM_JOB_ID % 20000))"'
    )
    # The plugin then leaves it to the rule to start its tasks, one on each node.
    NODES = {
        "mpi": "srun",
        "nodes": TRAIN["nodes"],
        "tasks": TRAIN["nodes"],
        "tasks_per_gpu": -1,
    }
else:
    LAUNCH = f"{TORCHRUN} --standalone"
    NODES = {"nodes": 1}  # else Slurm may spread the GPUs

if TRAINED:

    rule train_lora:
        input:
            cache=RESULTS / "cache/index.json",
            model=MODEL / "model_index.json",
        output:
            trained=[
                (
                    trained_file("{run}", i)
                    if TRAIN["method"] == "lora"
                    else directory(trained_file("{run}", i))
                )
                for i in TRAIN["iterations"]
            ],
            training=RESULTS / "lora/{run}/training.csv",
            validation=RESULTS / "lora/{run}/validation.csv",
            run=RESULTS / "lora/{run}/run.json",
        log:
            RESULTS / "logs/train_lora/{run}.log",
        benchmark:
            RESULTS / "benchmarks/train_lora/{run}.tsv"
        conda:
            "../../envs/pusa.yaml"
        threads: TRAIN["processes"] * on(gpu=8, cpu=1)  # 8 keep a GPU fed
        resources:
            **NODES,
            gpu=on(gpu=TRAIN["nodes"] * TRAIN["processes"], cpu=0),
            cpus_per_gpu=on(gpu=8, cpu=0),
            # Every process reads the base, 28 GB in bfloat16, before it goes to its GPU.
            mem_mb=on(gpu=40_000, cpu=0) * TRAIN["processes"],
            # The trainer is told, stops in time and saves; the next attempt goes on from there.
            runtime=on(gpu=1440, cpu=120),
        params:
            cache=RESULTS / "cache",
            transformer=MODEL / "transformer",
            folder=lambda wildcards: RESULTS / "lora" / wildcards.run,
            # Not an output: those are deleted when a job starts or fails.
            state=lambda wildcards: RESULTS / "training" / wildcards.run,
            run=run_options,
            iterations=" ".join(f"--iteration {i}" for i in TRAIN["iterations"]),
            launch=LAUNCH,
            options=(
                f"--method {TRAIN['method']} --objective {TRAIN['objective']}"
                f" --learning-rate {TRAIN['learning_rate']} --warmup {TRAIN['warmup']}"
                f" --total-batch {TRAIN['total_batch']} --micro-batch {TRAIN['micro_batch']}"
                f" --shift {TRAIN['shift']} --validation-clips {TRAIN['validation_clips']}"
                f" --dtype {TRAIN['dtype']} --device {config['device']}"
                f" --checkpoint-every {TRAIN['checkpoint_every']}"
                f"{' --gradient-checkpointing' if TRAIN['gradient_checkpointing'] else ''}"
                f"{' --offload' if TRAIN['offload'] else ''}"
            ),
        shell:
            "{params.launch} -m pusa train-lora {params.cache:q} {params.transformer:q}"
            " {params.folder:q} {params.run} {params.iterations} {params.options}"
            " --state {params.state:q} --minutes {resources.runtime} 2>&1"
            # Slurm sends its SIGTERM to every process; the trainer has yet to save, and to say so.
            " | (trap '' INT TERM; exec tee {log:q})"

else:

    # The authors' LoRA, or anyone's, in the place of the training.
    rule convert_lora:
        input:
            Path(LORA["path"]) / LORA["file"],
        output:
            trained_file(MAIN.run, LORA["iteration"]),
        log:
            RESULTS / "logs/convert_lora.log",
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,  # one tensor at a time
        params:
            rank=LORA["rank"],
        shell:
            "python -m pusa convert-lora --to diffusers --rank {params.rank} {input:q} {output:q}"
            " 2>&1 | tee {log:q}"


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
    threads: on(gpu=8, cpu=1)  # a rank of 512 is mostly multiplication
    resources:
        mem_mb=on(gpu=16_000, cpu=0),  # tensor by tensor, whatever the model's size
        runtime=on(gpu=240, cpu=20),  # reads and writes 56 GB in float32
    params:
        transformer=MODEL / "transformer",
        alpha=lambda wildcards: setting_of(wildcards).alpha,
    shell:
        "python -m pusa merge-lora --base {params.transformer:q} --lora {input.lora:q}"
        " --scale {params.alpha} --out {output:q} &> {log:q}"
