# Everything that needs the network: `snakemake download`, on a machine that has it. Each folder
# ends with a download.json, which says what was fetched: resolved commit, sizes, checksums.
# Every other job runs with the hub switched off; a user's own HF_HUB_OFFLINE is kept for these.
shell.prefix(
    "export PUSA_HUB_OFFLINE=${{HF_HUB_OFFLINE:-0}} HF_HUB_OFFLINE=1; set -euo pipefail; "
)

# No pattern takes pickles, unless it ends in their suffix.
MODEL_FILES = (
    "model_index.json",
    "transformer/*",
    "vae/*",
    "text_encoder/*",
    "tokenizer/*",
    "scheduler/*",
)
DATASET_FILES = {
    "encode": ("metadata.csv", "train/*.mp4"),
    "released": ("metadata.csv", "train/*.tensors.pth"),
}[config["cache"]["source"]]


if config["model"]["source"] == "hub":

    localrules:
        download_model,

    rule download_model:
        output:
            MODEL / "download.json",
            MODEL / "model_index.json",
        log:
            RESULTS / "logs/download_model.log",
        retries: 3  # goes on where a broken connection left it
        conda:
            "../../envs/pusa.yaml"
        params:
            repo=config["model"]["repo"],
            revision=config["model"]["revision"],
            folder=subpath(output[0], parent=True),
            include=include_options(MODEL_FILES),
        shell:
            "HF_HUB_OFFLINE=$PUSA_HUB_OFFLINE python -m pusa download {params.repo:q}"
            " {params.folder:q} --kind model --revision {params.revision:q}"
            " {params.include:q} 2>&1 | tee {log:q}"


if not TRAINED and "repo" in LORA:

    localrules:
        download_lora,

    rule download_lora:
        output:
            Path(LORA["path"]) / "download.json",
            Path(LORA["path"]) / LORA["file"],
        log:
            RESULTS / "logs/download_lora.log",
        retries: 3
        conda:
            "../../envs/pusa.yaml"
        params:
            repo=LORA["repo"],
            revision=LORA["revision"],
            folder=subpath(output[0], parent=True),
            include=include_options([LORA["file"]]),
        shell:
            "HF_HUB_OFFLINE=$PUSA_HUB_OFFLINE python -m pusa download {params.repo:q}"
            " {params.folder:q} --kind model --revision {params.revision:q}"
            " {params.include:q} 2>&1 | tee {log:q}"


if "baseline" in config:

    localrules:
        download_baseline,

    rule download_baseline:
        output:
            Path(config["baseline"]["path"]) / "download.json",
        log:
            RESULTS / "logs/download_baseline.log",
        retries: 3
        conda:
            "../../envs/pusa.yaml"
        params:
            repo=config["baseline"]["repo"],
            revision=config["baseline"]["revision"],
            folder=subpath(output[0], parent=True),
            include=include_options(
                (*MODEL_FILES, "image_encoder/*", "image_processor/*")
            ),
        shell:
            "HF_HUB_OFFLINE=$PUSA_HUB_OFFLINE python -m pusa download {params.repo:q}"
            " {params.folder:q} --kind model --revision {params.revision:q}"
            " {params.include:q} 2>&1 | tee {log:q}"


if TRAINED and config["dataset"]["source"] == "hub":

    localrules:
        download_dataset,

    rule download_dataset:
        output:
            DATASET / "download.json",
            DATASET / "metadata.csv",
        log:
            RESULTS / "logs/download_dataset.log",
        retries: 3
        conda:
            "../../envs/pusa.yaml"
        params:
            repo=config["dataset"]["repo"],
            revision=config["dataset"]["revision"],
            folder=subpath(output[0], parent=True),
            include=include_options(DATASET_FILES),
        shell:
            "HF_HUB_OFFLINE=$PUSA_HUB_OFFLINE python -m pusa download {params.repo:q}"
            " {params.folder:q} --kind dataset --revision {params.revision:q}"
            " {params.include:q} 2>&1 | tee {log:q}"


if config["suite"]["source"] == "vbench":

    localrules:
        download_suite,

    rule download_suite:
        output:
            SUITE / "download.json",
            SUITE_INFO,
        log:
            RESULTS / "logs/download_suite.log",
        retries: 3
        conda:
            "../../envs/pusa.yaml"
        params:
            folder=subpath(output[0], parent=True),
        shell:
            "python -m pusa download-suite {params.folder:q} 2>&1 | tee {log:q}"
