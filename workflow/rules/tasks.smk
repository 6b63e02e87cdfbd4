# The paper's zero-shot tasks on clips that no one trained on, one job per task. As with the suite's
# videos, only the list of them is an output.
TASK_CLIPS = pusa_tasks.count_clips(config)  # of each
TASKS = pusa_tasks.tasks_for(CLIP["frames"]) if TASK_CLIPS else {}

if TASKS:
    CLIPS = pusa_tasks.clips_folder(config)

    rule sample_task:
        input:
            dataset=CLIPS / "metadata.csv",
            cache=[] if "dataset" in config["tasks"] else RESULTS / "cache/index.json",
            model=MODEL / "model_index.json",
            adapted=trained_file(MAIN.run, MAIN.iteration),
            negative_prompt=NEGATIVE_PROMPT,
        output:
            RESULTS / "samples/tasks/{task}/videos.csv",
        log:
            RESULTS / "logs/sample_task/{task}.log",
        benchmark:
            RESULTS / "benchmarks/sample_task/{task}.tsv"
        conda:
            "../../envs/pusa.yaml"
        threads: on(gpu=4, cpu=1)
        resources:
            gpu=on(gpu=1, cpu=0),
            cpus_per_gpu=on(gpu=4, cpu=0),
            mem_mb=on(gpu=96_000, cpu=0),  # transformer, text encoder and VAE at once
            runtime=on(gpu=240, cpu=60),
        params:
            dataset=CLIPS,
            model=MODEL,
            clips=task_clip_options,
            weights=adapted_options(),
            size=clip_options(),
            options=pipeline_options(),
            negative=negative_prompt_options,
        shell:
            "python -m pusa sample-task {wildcards.task} {params.dataset:q} {params.model:q}"
            " {output:q} {params.clips:q} {params.weights:q} {params.size} {params.options}"
            " {params.negative:q} &> {log:q}"
