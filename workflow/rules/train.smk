# One training job per run (model, rank, seed), which saves the iterations that the sheet asks for;
# and the adapted model as one checkpoint.
TRAIN = CONFIG.train
MOVES_INPUTS = TRAIN.offload in ("activations", "both")
# At a SIGTERM the trainer ends its iteration and saves, for which torchrun gives it ten minutes.
TORCHRUN = f"torchrun --shutdown-timeout 600 --nproc-per-node {TRAIN.processes}"

if TRAIN.nodes > 1:
    # The rule's shell runs on the first node of the allocation, which is where they meet.
    LAUNCH = (
        f"srun --nodes {TRAIN.nodes} --ntasks {TRAIN.nodes} --ntasks-per-node 1"
        f" --cpus-per-task {on(gpu=8, cpu=1) * TRAIN.processes}"
        f"{on(gpu=' --gpus-per-node ' + str(TRAIN.processes), cpu='')}"
        f" {TORCHRUN} --nnodes {TRAIN.nodes}"
        ' --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID"'
        # A port of its own, should another training start on the same node.
        ' --rdzv-endpoint "$(hostname):$((20000 + SLURM_JOB_ID % 20000))"'
    )
    # The plugin then leaves it to the rule to start its tasks, one on each node.
    NODES = {
        "mpi": "srun",
        "nodes": TRAIN.nodes,
        "tasks": TRAIN.nodes,
        "tasks_per_gpu": -1,
    }
else:
    LAUNCH = f"{TORCHRUN} --standalone"
    NODES = {"nodes": 1}  # else Slurm may spread the GPUs

for run in FILES.runs.values():
    weights = [FILES.weights(run.name, i) for i in run.iterations]

    rule:
        name:
            f"train_{run.name.replace('-', '_')}"
        input:
            cache=FILES.path("cache/index.json"),
            model=ancient(f"{MODEL}/model_index.json"),
        output:
            trained=(
                weights if TRAIN.method == "lora" else [directory(w) for w in weights]
            ),
            training=FILES.trained(run.name, "training.csv"),
            validation=FILES.trained(run.name, "validation.csv"),
            run=FILES.trained(run.name, "run.json"),
        log:
            FILES.log("train", run.name),
        benchmark:
            FILES.benchmark("train", run.name)
        priority: 2  # most other jobs wait for it
        conda:
            "../../envs/pusa.yaml"
        threads: TRAIN.processes * on(gpu=8, cpu=1)  # 8 keep a GPU fed
        resources:
            **NODES,
            gpu=on(gpu=TRAIN.nodes * TRAIN.processes, cpu=0),
            cpus_per_gpu=on(gpu=8, cpu=0),
            # Every process reads the base, 28 GB in bfloat16, before it goes to its GPU; the inputs
            # of blocks are as much again at 1280x720.
            mem_mb=on(gpu=40_000 + 32_000 * MOVES_INPUTS, cpu=0) * TRAIN.processes,
            # The trainer is told, stops in time and saves; the next attempt goes on from there.
            runtime=on(gpu=1440, cpu=120),
        params:
            launch=LAUNCH,
            cache=subpath(input.cache, parent=True),
            transformer=FILES.transformer,
            folder=subpath(output.run, parent=True),
            # Not an output: those are deleted when a job starts or fails.
            state=FILES.path("training", run.name),
            settings=FILES.train_settings(run).model_dump_json(),
            device=CONFIG.device,
        shell:
            "{params.launch} -m pusa train {params.cache:q} {params.transformer:q}"
            " {params.folder:q} --settings {params.settings:q} --device {params.device}"
            " --state {params.state:q} --minutes {resources.runtime} 2>&1"
            # Slurm sends its SIGTERM to every process; the trainer has yet to save, and to say so.
            " | (trap '' INT TERM; exec tee {log:q})"


if not TRAINED:

    # The authors' LoRA, or anyone's, in the place of the training.
    rule convert:
        input:
            f"{CONFIG.lora.path}/{CONFIG.lora.file}",
        output:
            FILES.main_weights,
        log:
            FILES.log("convert"),
        conda:
            "../../envs/pusa.yaml"
        resources:
            **SMALL,  # one tensor at a time
        params:
            rank=CONFIG.lora.rank,
        shell:
            "python -m pusa convert --to diffusers --rank {params.rank} {input:q} {output:q}"
            " 2>&1 | tee {log:q}"


if FILES.merged:

    # For whoever uses the model elsewhere. Sampling merges as it loads, of many LoRAs and scales.
    rule merge:
        input:
            lora=FILES.main_weights,
            model=ancient(f"{MODEL}/model_index.json"),
        output:
            f"{FILES.merged}/config.json",  # and the weights beside it
        log:
            FILES.log("merge"),
        conda:
            "../../envs/pusa.yaml"
        threads: on(gpu=8, cpu=1)  # a rank of 512 is mostly multiplication
        resources:
            mem_mb=on(gpu=16_000, cpu=0),  # tensor by tensor, whatever the model's size
            runtime=on(gpu=240, cpu=20),  # reads 56 GB in float32, writes 28 in bfloat16
        params:
            folder=subpath(output[0], parent=True),
            transformer=FILES.transformer,
            lora_scale=FILES.main.alpha,
            dtype=CONFIG.sample.dtype,
        shell:
            # What is left of an earlier one, which merging would not touch.
            "rm -rf {params.folder:q} && "
            "python -m pusa merge --base {params.transformer:q} --lora {input.lora:q}"
            " --lora-scale {params.lora_scale} --dtype {params.dtype} --out {params.folder:q}"
            " &> {log:q}"
