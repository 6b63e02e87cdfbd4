"""The networks of VBench-I2V's nine dimensions: where they come from and where VBench looks.

A folder of weights is what vbench 0.1.5 takes as ``VBENCH_CACHE_DIR``; ``torch/`` in it is
``TORCH_HOME``. Files are checked in VBench's environment too, which has no client to download
with, so this module imports `pusa.data.download` only to download.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pusa.digests import describe_file
from pusa.records import check_space


@dataclass(frozen=True)
class Download:
    """One or several files of a folder of weights, and their source.

    ``source`` is the URL of a ``file`` or of a ``zip`` archive, or a model repository of the
    ``hub``, which knows the checksums of its files. ``files`` are names in ``folder``, with their
    SHA-256 where it is known; a name that ends in ``/`` is a folder. They lie in the folder
    ``inside`` of an archive. VBench reads them for its ``dimensions``.
    """

    dimensions: tuple[str, ...]
    kind: Literal["file", "zip", "hub"]
    source: str
    folder: str
    files: dict[str, str | None]
    megabytes: int
    """Disk that it takes at most, about: an archive lies beside what comes out of it."""
    inside: str = ""

    def missing(self, folder: Path, recorded: dict[str, dict]) -> list[str]:
        """Names of what is not in a folder of weights, or no longer whole, by its record."""
        lost = [file for file in recorded if not (folder / file).exists()]
        return [
            name
            for name in self.files
            if not _list_files(folder / self.folder / name)
            or any(file.startswith(f"{self.folder}/{name}") for file in lost)
        ]


CLIP = "https://openaipublic.azureedge.net/clip/models"
CLIP_B32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
CLIP_L14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
LAION_COMMIT = "6d122adad522ab246644d9dc1c6d7a3810ee255f"
DINO_COMMIT = "7c446df5b9f45747937fb0d72314eb9f7b66930a"
#: The newest of the main branch, of which VBench takes whatever is there.
COTRACKER_COMMIT = "82e02e8029753ad4ef13cf06be7f4fc5facdda4d"

# Checksums: CLIP's are in its addresses, the first eight digits of MUSIQ's in its name, as in
# torch.hub. The authors of the others state none: DINO's, RAFT's and the rest of MUSIQ's are those
# that several projects report, LAION's and those of DINO's code are of their repositories. The
# hub knows those of AMT and CoTracker. DreamSim's are recorded, and nothing vouches for them.
DOWNLOADS = (
    Download(
        dimensions=("background_consistency",),
        kind="file",
        source=f"{CLIP}/{CLIP_B32}/ViT-B-32.pt",
        folder="clip_model",
        files={"ViT-B-32.pt": CLIP_B32},
        megabytes=354,
    ),
    Download(
        dimensions=("aesthetic_quality",),
        kind="file",
        source=f"{CLIP}/{CLIP_L14}/ViT-L-14.pt",
        folder="clip_model",
        files={"ViT-L-14.pt": CLIP_L14},
        megabytes=933,
    ),
    Download(
        dimensions=("aesthetic_quality",),
        kind="file",
        source="https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/"
        f"{LAION_COMMIT}/sa_0_4_vit_l_14_linear.pth",
        folder="aesthetic_model/emb_reader",
        files={
            "sa_0_4_vit_l_14_linear.pth": (
                "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"
            )
        },
        megabytes=1,
    ),
    Download(
        dimensions=("imaging_quality",),
        kind="file",
        source="https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/"
        "musiq_spaq_ckpt-358bb6af.pth",
        folder="pyiqa_model",
        files={
            "musiq_spaq_ckpt-358bb6af.pth": (
                "358bb6af275e28ea56821d44fb55c6cb83645db11f394d3ad65b2d149965ab50"
            )
        },
        megabytes=109,
    ),
    Download(
        dimensions=("motion_smoothness",),
        kind="hub",
        source="lalala125/AMT",
        folder="amt_model",
        files={"amt-s.pth": None},
        megabytes=12,
    ),
    Download(
        dimensions=("dynamic_degree",),
        kind="zip",
        source="https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
        folder="raft_model",
        files={
            "models/raft-things.pth": (
                "fcfa4125d6418f4de95d84aec20a3c5f4e205101715a79f193243c186ac9a7e1"
            )
        },
        megabytes=120,
    ),
    Download(
        dimensions=("subject_consistency", "i2v_subject", "i2v_background"),
        kind="file",
        source="https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/"
        "dino_vitbase16_pretrain.pth",
        folder="dino_model",
        files={
            "dino_vitbase16_pretrain.pth": (
                "bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e"
            )
        },
        megabytes=344,
    ),
    Download(
        dimensions=("subject_consistency", "i2v_subject", "i2v_background"),
        kind="zip",
        source=f"https://github.com/facebookresearch/dino/archive/{DINO_COMMIT}.zip",
        inside=f"dino-{DINO_COMMIT}/",
        folder="dino_model/facebookresearch_dino_main",
        files={
            "hubconf.py": "fa80babf82c71d2123e23b05061eb1991a1fbc9877238f250b2a25023e910f72",
            "utils.py": "962a97e1acda1c986dfd921275325e4083f9016dddadcf018f1ccf03fa600eab",
            "vision_transformer.py": (
                "b1f998d5f49ab43666b9fc6d007c5f6540c3ead2e8645e144f74045f63ff44d7"
            ),
        },
        megabytes=30,
    ),
    Download(
        dimensions=("i2v_background",),
        kind="zip",
        source="https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/"
        "dreamsim_ensemble_checkpoint.zip",
        folder="torch/hub",
        files={
            "dino_vitb16_pretrain.pth": None,
            "clip_vitb16_pretrain.pth.tar": None,
            "open_clip_vitb16_pretrain.pth.tar": None,
            "ensemble_lora/": None,
        },
        megabytes=2700,
    ),
    Download(
        dimensions=("camera_motion",),
        kind="hub",
        source="facebook/cotracker",
        folder="torch/hub/checkpoints",
        files={"cotracker2.pth": None},
        megabytes=204,
    ),
    Download(
        dimensions=("camera_motion",),
        kind="zip",
        source=f"https://github.com/facebookresearch/co-tracker/archive/{COTRACKER_COMMIT}.zip",
        inside=f"co-tracker-{COTRACKER_COMMIT}/",
        folder="torch/hub/facebookresearch_co-tracker_main",
        files={
            "hubconf.py": "7f43a7007762cf71d771fa218047b7e9011f1ec0705270aa7e5b10de157274f3",
            "cotracker/": None,
        },
        megabytes=20,
    ),
)

#: What is looked for in two places, and what it links to; relative, so that a copy works.
LINKS = {
    "torch/hub/checkpoints/dino_vitbase16_pretrain.pth": "dino_model/dino_vitbase16_pretrain.pth",
    "torch/hub/facebookresearch_dino_main": "dino_model/facebookresearch_dino_main",
}


def dimension_files(dimension: str) -> list[str]:
    """What VBench reads for a dimension, as names in a folder of weights; folders end in ``/``."""
    names = [
        f"{download.folder}/{name}"
        for download in DOWNLOADS
        if dimension in download.dimensions
        for name in download.files
    ]
    links = [link for link, target in LINKS.items() if any(n.startswith(target) for n in names)]
    return names + links


def download_weights(folder: str | Path) -> None:
    """Download every network that VBench-I2V scores with, about 4 GB, and check them.

    What is there already is kept, whoever put it there, if its checksum is right or not known;
    so is a zip archive of `DOWNLOADS` that lies in ``folder`` itself. Without a network, files
    that were all put into their places by hand are checked and recorded.

    Raises:
        ValueError: if a file has a wrong checksum, or an archive is not what it should be.
        OSError: if the disk is too small or a file cannot be downloaded.
    """
    from pusa.data.download import write_record

    folder = Path(folder)
    recorded = _read_record(folder)
    files = {}
    for download in DOWNLOADS:  # what is there, before anything is downloaded
        files |= _describe(download, folder, recorded)
    to_do = [download for download in DOWNLOADS if download.missing(folder, recorded)]
    folder.mkdir(parents=True, exist_ok=True)
    check_space(folder, sum(d.megabytes for d in to_do) * 1_000_000, "the download")
    for download in to_do:
        _fetch(download, folder, download.missing(folder, recorded))
        files |= _describe(download, folder, files)
    for link, target in LINKS.items():
        _link(folder / link, folder / target)
    # torch.hub makes this list where it is not; the folder may be read-only when scores are made.
    (folder / "torch/hub").mkdir(parents=True, exist_ok=True)
    (folder / "torch/hub/trusted_list").touch()
    if files != recorded:
        write_record(folder, {"url": "see each file"}, files)


def check_weights(folder: str | Path) -> None:
    """Check that a folder of `download_weights` is whole, for instance after it was copied.

    Sizes are compared, which takes no time; checksums were when the files came.

    Raises:
        FileNotFoundError: if a file is missing, or was never downloaded.
        ValueError: if a file has another size than when it came, or the record is damaged.
    """
    folder = Path(folder)
    again = f"run `pusa download-vbench --weights {folder}` where there is a network"
    recorded = _read_record(folder)
    if not recorded:
        raise FileNotFoundError(
            f"{folder / 'download.json'} does not exist: VBench's networks were not downloaded "
            f"whole; {again}"
        )
    missing = [name for name in [*recorded, *LINKS] if not (folder / name).exists()]
    missing += [f"{d.folder}/{name}" for d in DOWNLOADS for name in d.missing(folder, {})]
    if missing:
        raise FileNotFoundError(f"{folder / missing[0]} is missing; {again}")
    for name, expected in recorded.items():
        found = (folder / name).stat().st_size
        if found != expected["size"]:
            raise ValueError(
                f"{folder / name}: expected {expected['size']} bytes, found {found}; delete it and "
                f"{again}"
            )


def _read_record(folder: Path) -> dict[str, dict]:
    """The files of an earlier download, by name; none if there was none."""
    file = folder / "download.json"
    try:
        return json.loads(file.read_text())["files"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: expected the record of a download ({error!r}); delete it and download again"
        ) from None


def _list_files(path: Path) -> list[Path]:
    """The file, or the files of a folder, without what Python leaves there when it imports."""
    found = [path] if path.is_file() else path.rglob("*")
    return sorted(f for f in found if f.is_file() and f.parent.name != "__pycache__")


def _describe(download: Download, folder: Path, recorded: dict[str, dict]) -> dict[str, dict]:
    """Sizes, checksums and sources of the files of a download, which must be those expected.

    A file of the recorded size is taken for the one on record; others are read.
    """
    described = {}
    for name, sha256 in download.files.items():
        for path in _list_files(folder / download.folder / name):
            key = path.relative_to(folder).as_posix()
            known = recorded.get(key, {})
            expected = sha256 or known.get("sha256")
            if path.stat().st_size != known.get("size") or expected != known.get("sha256"):
                known = {**describe_file(path), **_name_source(download, folder)}
            if expected and known["sha256"] != expected:
                raise ValueError(
                    f"{path}: expected SHA-256 {expected}, found {known['sha256']}; delete it to "
                    "have it downloaded anew"
                )
            described[key] = known
    return described


def _name_source(download: Download, folder: Path) -> dict[str, str]:
    """Where a download comes from; of a hub repository also the commit, unless put in by hand."""
    record = folder / download.folder / "download.json"
    if download.kind == "hub" and record.exists():
        return {"source": download.source, "commit": json.loads(record.read_text())["commit"]}
    return {"source": download.source}


def _fetch(download: Download, folder: Path, names: list[str]) -> None:
    from pusa.data.download import download_file, download_repository, unpack

    place = folder / download.folder
    if download.kind == "hub":
        try:
            download_repository(download.source, place, kind="model", include=names)
        except OSError as error:
            raise OSError(f"{error}; or put {names[0]} at {place / names[0]}") from None
    elif download.kind == "file":
        download_file(download.source, place / names[0], download.files[names[0]])
    else:
        archive = folder / PurePosixPath(download.source).name
        is_users = archive.exists()
        if not is_users:
            download_file(download.source, archive)
        unpack(archive, place, names, inside=download.inside)
        if not is_users:
            archive.unlink()


def _link(link: Path, target: Path) -> None:
    if not link.exists():
        link.unlink(missing_ok=True)  # one that leads nowhere
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))
