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

# Rule, section of the configuration, kind of repository, files, and one that others wait for.
REPOSITORIES = []
if config["model"]["source"] == "hub":
    REPOSITORIES.append(
        ("download_model", "model", "model", MODEL_FILES, "model_index.json")
    )
if not TRAINED and "repo" in LORA:
    REPOSITORIES.append(
        ("download_lora", "lora", "model", [LORA["file"]], LORA["file"])
    )
if TRAINED and config["dataset"]["source"] == "hub":
    REPOSITORIES.append(
        ("download_dataset", "dataset", "dataset", DATASET_FILES, "metadata.csv")
    )
if WITH_BASELINE and config["baseline"]["source"] == "hub":
    files = (*MODEL_FILES, "image_encoder/*", "image_processor/*")
    REPOSITORIES.append(
        ("download_baseline", "baseline", "model", files, "model_index.json")
    )

for rule_name, section, kind, files, awaited in REPOSITORIES:

    rule:
        name:
            rule_name
        output:
            Path(config[section]["path"]) / "download.json",
            Path(config[section]["path"]) / awaited,
        log:
            RESULTS / "logs" / f"{rule_name}.log",
        retries: 0  # the client tries again by itself; what it gives up, a person must mend
        localrule: True
        conda:
            "../../envs/pusa.yaml"
        params:
            repo=config[section]["repo"],
            revision=config[section]["revision"],
            folder=subpath(output[0], parent=True),
            options=[
                "--kind",
                kind,
                *(word for pattern in files for word in ("--include", pattern)),
            ],
        shell:
            "HF_HUB_OFFLINE=$PUSA_HUB_OFFLINE python -m pusa download {params.repo:q}"
            " {params.folder:q} --revision {params.revision:q} {params.options:q}"
            " 2>&1 | tee {log:q}"


# The prompt suite with its images, and all networks that VBench scores with.
SUITE_DOWNLOAD = [SUITE / "download.json", SUITE_INFO]
WANTED = {
    "--suite": SUITE if config["suite"]["source"] == "vbench" else None,
    "--weights": WEIGHTS if VBENCH else None,
}

if any(WANTED.values()):

    rule download_vbench:
        output:
            SUITE_DOWNLOAD if WANTED["--suite"] else [],
            WEIGHTS / "download.json" if VBENCH else [],
        log:
            RESULTS / "logs/download_vbench.log",
        retries: 0
        localrule: True
        conda:
            "../../envs/pusa.yaml"
        params:
            folders=[w for option in WANTED.items() if option[1] for w in option],
        shell:
            "HF_HUB_OFFLINE=$PUSA_HUB_OFFLINE python -m pusa download-vbench {params.folders:q}"
            " 2>&1 | tee {log:q}"
