# Videos of the prompt suite, one job per setting and shard, and of the paper's zero-shot tasks, one
# job per task. Only the list of videos is an output: they lie beside it, so that an interrupted job
# keeps those it finished.


# How videos of the main setting are sampled by the pipeline.
MAIN_VIDEO = CONFIG.sample.part(
    VideoSettings,
    **CONFIG.clip.part(Size).model_dump(),
    steps=FILES.main.steps,
    negative_prompt=FILES.negative_prompt,
).model_dump_json()


# Of the main setting: a LoRA that is not merged, or a whole transformer.
MAIN_WEIGHTS = (
    pipeline_weights(transformer=FILES.main_weights)
    if FILES.main.rank is None
    else pipeline_weights(f"{FILES.main_weights}:{FILES.main.alpha}")
)


rule sample_suite:
    input:
        suite=FILES.suite_info,
        prompts=FILES.path("cache/prompts.safetensors"),
        model=model_of,
        weights=lambda wildcards: FILES.setting_weights(setting_of(wildcards)),
        # What scores the videos is looked at before days are spent on making them.
        checked=lambda wildcards: (
            ancient(FILES.path("scores/vbench_checked"))
            if VBENCH and wildcards.study != "first_look"
            else []
        ),
    output:
        FILES.manifest("{study}", "{setting}", "{shard}"),
    log:
        FILES.log("sample_suite", "{study}", "{setting}", "shard{shard}"),
    benchmark:
        FILES.benchmark("sample_suite", "{study}", "{setting}", "shard{shard}")
    wildcard_constraints:
        setting=rf"(?!({'|'.join(BOUNDS)})-)[a-z0-9_.-]+",
    conda:
        "../../envs/pusa.yaml"
    threads: on(gpu=4, cpu=1)
    resources:
        gpu=on(gpu=1, cpu=0),
        cpus_per_gpu=on(gpu=4, cpu=0),  # threads, which --cores may cap
        # Reads the transformer, 28 GB in bfloat16, tensor by tensor where a LoRA is merged into it.
        mem_mb=on(gpu=64_000, cpu=0),
        # A next attempt keeps the videos that are done.
        runtime=on(gpu=CONFIG.resources.sampling_minutes, cpu=60),
    params:
        suite=subpath(input.suite, parent=True),
        model=lambda wildcards: FILES.setting_model(setting_of(wildcards)),
        transformer=transformer_options,
        settings=suite_settings,
        counts=lambda wildcards: json.dumps(
            FILES.sampled(wildcards.study, wildcards.setting)
        ),
        shards=lambda wildcards: FILES.shards(wildcards.study, wildcards.setting),
        # By itself a param that is made from threads runs no job again: of the switches only those
        # that change videos do.
        switches=lambda wildcards, threads: SWITCHES,
        altering=CONFIG.sample.altering,
        device=CONFIG.device,
    shell:
        "python -m pusa sample-suite {params.suite:q} {params.model:q} {output:q}"
        " {params.transformer:q} --prompts {input.prompts:q} --settings {params.settings:q}"
        " --switches {params.switches:q}"
        " --counts {params.counts:q} --shard {wildcards.shard} --shards {params.shards}"
        " --device {params.device} &> {log:q}"


# What no model makes, to tell what scores are worth.
rule sample_bound:
    input:
        suite=FILES.suite_info,
        model=ancient(f"{MODEL}/model_index.json"),
    output:
        FILES.manifest("{study}", "{bound}-i2v", "{shard}"),
    log:
        FILES.log("sample_bound", "{study}", "{bound}-i2v", "shard{shard}"),
    conda:
        "../../envs/pusa.yaml"
    resources:
        mem_mb=on(gpu=16_000, cpu=0),  # one video at a time, perhaps through the VAE
        runtime=on(gpu=480, cpu=60),
    params:
        suite=subpath(input.suite, parent=True),
        model=subpath(input.model, parent=True),
        size=SIZE,
        samples=CONFIG.sample.samples,
        counts=lambda wildcards: json.dumps(
            FILES.sampled(wildcards.study, f"{wildcards.bound}-i2v")
        ),
        shards=lambda wildcards: FILES.shards(wildcards.study, f"{wildcards.bound}-i2v"),
    shell:
        "python -m pusa sample-bound {wildcards.bound} {params.suite:q} {params.model:q} {output:q}"
        " --size {params.size:q} --samples {params.samples} --counts {params.counts:q}"
        " --shard {wildcards.shard} --shards {params.shards} --device cpu &> {log:q}"


if FILES.tasks:

    rule sample_task:
        input:
            dataset=f"{FILES.task_dataset}/metadata.csv",
            cache=[] if CONFIG.tasks.dataset else FILES.path("cache/index.json"),
            model=ancient(f"{MODEL}/model_index.json"),
            adapted=FILES.main_weights,
        output:
            FILES.task_manifest("{task}"),
        log:
            FILES.log("sample_task", "{task}"),
        benchmark:
            FILES.benchmark("sample_task", "{task}")
        conda:
            "../../envs/pusa.yaml"
        threads: on(gpu=4, cpu=1)
        resources:
            gpu=on(gpu=1, cpu=0),
            cpus_per_gpu=on(gpu=4, cpu=0),
            mem_mb=on(gpu=96_000, cpu=0),  # transformer, text encoder and VAE at once
            runtime=on(gpu=240, cpu=60),
        params:
            dataset=subpath(input.dataset, parent=True),
            model=subpath(input.model, parent=True),
            clips=FILES.task_clips,
            # Which clips of the folder: all, or those that training left out, by the cache.
            held_out=(
                []
                if CONFIG.tasks.dataset
                else [
                    "--cache",
                    FILES.path("cache"),
                    "--held-out",
                    CONFIG.train.validation_clips,
                ]
            ),
            weights=MAIN_WEIGHTS,
            settings=MAIN_VIDEO,
            switches=lambda wildcards, threads: SWITCHES,
            altering=CONFIG.sample.altering,
            device=CONFIG.device,
        shell:
            "python -m pusa sample-task {wildcards.task} {params.dataset:q} {params.model:q}"
            " {output:q} --clips {params.clips} {params.held_out:q}"
            " --weights {params.weights:q} --settings {params.settings:q}"
            " --switches {params.switches:q} --device {params.device} &> {log:q}"
