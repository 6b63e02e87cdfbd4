"""What comes from the network: hub repositories and VBench-I2V's prompt suite."""

import os
from pathlib import Path
from zipfile import ZipFile

import gdown
import pooch
from huggingface_hub import snapshot_download

from pusa.suite import INFO_FILE

SUITE_URL = (
    "https://raw.githubusercontent.com/Vchitect/VBench/"
    "45e79ec14e69a2187202c675d2dbce1a71843d53/vbench2_beta_i2v/" + INFO_FILE
)
SUITE_SHA256 = "8cf4d34dc11779a336c216a1a71d482927cfa24a1bf736ab5c92425609f129f8"
#: The suite's images in four aspect ratios, on the VBench authors' shared drive.
IMAGES_DRIVE_ID = "1Y_JnYnyJ3a6QhiranoX0MQVZFcTDPekZ"


def download_repository(repo: str, folder: str | Path, *, kind: str, revision: str) -> None:
    """Download a hub repository; an interrupted download resumes. ``kind``: model or dataset."""
    # The dataset's repository also holds pre-encoded clips, which are pickles.
    ignore = ["*.pth"] if kind == "dataset" else None
    snapshot_download(
        repo, repo_type=kind, revision=revision, local_dir=folder, ignore_patterns=ignore
    )


def download_suite(folder: str | Path) -> None:
    """Download VBench-I2V's prompts and images into ``folder``.

    Images that are there already, as ``crop.zip`` or unpacked in ``crop/``, are used.

    Raises:
        ValueError: if the images cannot be had, or the prompt list has not the published
            checksum.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "crop.zip"
    if not (folder / "crop").is_dir():
        if not archive.exists() and not gdown.download(id=IMAGES_DRIVE_ID, output=str(archive)):
            raise ValueError(
                f"VBench-I2V's images (shared drive {IMAGES_DRIVE_ID}) could not be downloaded; "
                f"put their crop.zip at {archive}"
            )
        with ZipFile(archive) as images:
            images.extractall(folder / "crop.partial")
        os.replace(folder / "crop.partial" / "crop", folder / "crop")
    # Last, as the list is what tells the workflow that the suite is complete.
    pooch.retrieve(SUITE_URL, known_hash=f"sha256:{SUITE_SHA256}", fname=INFO_FILE, path=folder)
