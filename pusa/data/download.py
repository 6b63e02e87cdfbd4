"""What comes from the network: hub repositories, VBench-I2V's prompt suite, single files.

A folder that was downloaded whole and checked holds ``download.json``, written last, which says
where its files come from, with their sizes and SHA-256.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from zipfile import BadZipFile

import gdown
import pooch
from gdown.exceptions import DownloadError
from huggingface_hub import HfApi, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import filter_repo_objects
from tqdm import tqdm

from pusa.data.suite import INFO_FILE
from pusa.digests import describe_file, digest_file, remember_digest
from pusa.records import atomic, check_space, remove

RECORD = "download.json"
#: Where the hub's client keeps a note on each file of a folder, and files that are under way.
CLIENT_NOTES = Path(".cache/huggingface/download")
#: Formats that can run code when they are opened; taken only by a pattern that ends like this.
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")

SUITE_COMMIT = "45e79ec14e69a2187202c675d2dbce1a71843d53"
SUITE_URL = (
    f"https://raw.githubusercontent.com/Vchitect/VBench/{SUITE_COMMIT}/vbench2_beta_i2v/{INFO_FILE}"
)
SUITE_SHA256 = "8cf4d34dc11779a336c216a1a71d482927cfa24a1bf736ab5c92425609f129f8"
#: The suite's images in four aspect ratios, on the VBench authors' shared drive.
IMAGES_DRIVE_ID = "1Y_JnYnyJ3a6QhiranoX0MQVZFcTDPekZ"


def download_repository(
    repo: str,
    folder: str | Path,
    *,
    kind: str,
    revision: str = "main",
    include: Sequence[str] = (),
) -> None:
    """Download files of a hub repository into a folder of their own, and check them.

    The revision is resolved to a commit first, and every file is of that commit. Files that an
    earlier call fetched are kept, those of another repository or commit are deleted. The hub's
    client resumes within a file when the connection breaks, but not when it was killed: then the
    files under way begin again. It compares sizes as files come, and is asked to compare all
    checksums in the end.

    Args:
        kind: ``model`` or ``dataset``.
        revision: branch, tag or commit.
        include: glob patterns, each of which must match; all files but pickles if none is given.

    Raises:
        ValueError: if a pattern matches nothing, or a file is not what the hub says it is.
        OSError: if the repository or revision does not exist or may not be read, the disk is
            too small, the hub cannot be reached, or ``HF_HUB_OFFLINE`` is set.
    """
    folder = Path(folder)
    request = {"repo": repo, "kind": kind, "revision": revision, "include": sorted(include)}
    done = _finished_download(folder, request)
    if done and (is_offline_mode() or done["commit"] == revision):
        return
    if is_offline_mode():
        raise OSError(
            f"{repo} is to be downloaded into {folder}, but HF_HUB_OFFLINE is set: downloads need "
            "the network, run them on the login node and without it"
        )
    with _explain_errors(repo, kind, revision):
        info = HfApi().repo_info(repo, repo_type=kind, revision=revision, files_metadata=True)
    if done and done["commit"] == info.sha:
        return

    ignore = [f"*{end}" for end in PICKLES if not any(p.endswith(end) for p in include)]
    files = _select_files(info.siblings, include or ["*"], ignore, f"{repo} at {revision}")
    _delete_unfinished(folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing = sum(f.size for f in files if not _has_size(folder / f.rfilename, f.size))
    check_space(folder, missing, "the download")
    (folder / RECORD).unlink(missing_ok=True)
    _delete_foreign(folder, {file.rfilename for file in files})
    with _explain_errors(repo, kind, revision):
        snapshot_download(
            repo,
            repo_type=kind,
            revision=info.sha,
            local_dir=folder,
            allow_patterns=list(include) or None,
            ignore_patterns=ignore,
        )
        print(f"comparing checksums in {folder}, which may take minutes", file=sys.stderr)
        found = HfApi().verify_repo_checksums(
            repo, repo_type=kind, revision=info.sha, local_dir=folder
        )
    source = {**request, "endpoint": HfApi().endpoint, "commit": info.sha}
    write_record(folder, source, _describe_files(folder, files, found))


def download_suite(folder: str | Path) -> None:
    """Download VBench-I2V's prompts and images into ``folder``.

    What is there already is used: the prompt list, and images as ``crop.zip`` or unpacked in
    ``crop/``.

    Raises:
        ValueError: if the prompt list has not the published checksum, or the images cannot be
            had or unpacked.
        OSError: if the prompt list cannot be downloaded.
    """
    folder = Path(folder)
    info_file, archive = folder / INFO_FILE, folder / "crop.zip"
    if not info_file.exists():
        download_file(SUITE_URL, info_file, SUITE_SHA256)
    elif (found := digest_file(info_file)) != SUITE_SHA256:
        raise ValueError(
            f"{info_file}: expected VBench-I2V's published list, SHA-256 {SUITE_SHA256}, found "
            f"{found}; delete it to have that list downloaded, or set suite.source: folder to use "
            "this one"
        )
    if not (folder / "crop").is_dir():
        if not archive.exists():
            _download_images(archive)
        unpack(archive, folder, ["crop/"])
    # Only what this call has seen: images that came unpacked have no archive to vouch for them.
    files = {p.name: describe_file(p) for p in (info_file, archive) if p.is_file()}
    source = {"url": SUITE_URL, "commit": SUITE_COMMIT, "images": IMAGES_DRIVE_ID}
    write_record(folder, source, files)


def download_file(url: str, path: Path, sha256: str | None = None) -> None:
    """Download one file; it is at ``path`` when it is whole and has the checksum, if one is given.

    Raises:
        ValueError: if it has another checksum.
        OSError: if it cannot be downloaded.
    """
    by_hand = f"run the same command again, or put the file at {path}"
    # Pooch sets the true total; a bar without one counts as none.
    progress = tqdm(total=1, desc=path.name, unit="B", unit_scale=True, mininterval=2)
    try:
        with atomic(path) as partial, progress:
            pooch.HTTPDownloader(progress, chunk_size=1 << 20)(url, str(partial), None)
            if sha256 and (found := digest_file(partial)) != sha256:
                raise ValueError(f"{url}: expected SHA-256 {sha256}, found {found}; {by_hand}")
    except OSError as error:
        raise OSError(f"{url} cannot be downloaded ({_first_line(error)}); {by_hand}") from None


def unpack(archive: Path, folder: Path, names: Sequence[str], *, inside: str = "") -> None:
    """Unpack some of a zip archive into ``folder``, where each file or folder appears whole.

    Args:
        names: files, and folders, which end in ``/``.
        inside: folder of the archive that the names lie in, ending in ``/``.

    Raises:
        ValueError: if it is not a zip archive, is damaged or lacks a name.
    """
    unpacked = folder.resolve() / f".partial-{archive.name}"
    wanted = [inside + name for name in names]
    remove(unpacked)  # of a process that was killed
    try:
        pooch.Unzip(wanted, unpacked)(str(archive), "download", None)
        if missing := [name for name in wanted if not (unpacked / name).exists()]:
            raise ValueError(f"it has no {missing[0]}")
        for name in names:
            with atomic(folder / name) as partial:
                os.replace(unpacked / inside / name, partial)
    except (BadZipFile, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        raise ValueError(
            f"{archive}: expected a zip file with {', '.join(wanted)} ({error}); delete it to have "
            "it downloaded anew"
        ) from None
    finally:
        remove(unpacked)


def _download_images(archive: Path) -> None:
    try:
        gdown.download(id=IMAGES_DRIVE_ID, output=str(archive), resume=True)
    except (DownloadError, OSError) as error:
        raise ValueError(
            f"VBench-I2V's images (shared drive {IMAGES_DRIVE_ID}) could not be downloaded "
            f"({_first_line(error)}); put their crop.zip at {archive}"
        ) from None


def write_record(folder: Path, source: dict, files: dict[str, dict]) -> None:
    """Write the ``download.json`` of a folder that is whole: its source, the time, its files."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    with atomic(folder / RECORD) as partial:
        partial.write_text(json.dumps({**source, "date": date, "files": files}, indent=1) + "\n")


def _finished_download(folder: Path, request: dict) -> dict | None:
    """The folder's record, if it answers this request and its files are there."""
    try:
        record = json.loads((folder / RECORD).read_text())
        answers = {key: record[key] for key in request} == request
        whole = all(_has_size(folder / n, file["size"]) for n, file in record["files"].items())
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return record if answers and whole else None


@contextmanager
def _explain_errors(repo: str, kind: str, revision: str) -> Iterator[None]:
    """Say in one sentence what the client says in several."""
    page = f"{HfApi().endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    again = "run the same command again, finished files are kept"
    try:
        yield
    except GatedRepoError:
        raise OSError(
            f"{page} is gated: accept its terms on that page, and set HF_TOKEN to a token of the "
            "account that did"
        ) from None
    except RepositoryNotFoundError:
        raise OSError(
            f"{page} does not exist, or is private: check the name, that it is a {kind}, and "
            "HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise OSError(
            f"{page} has no revision {revision!r}; expected a branch, a tag or a commit"
        ) from None
    except HfHubHTTPError as error:
        said = _first_line(error.server_message or error.response.reason_phrase)
        raise OSError(f"{page}: the hub answered {error.response.status_code} ({said})") from None
    except (HTTPError, LocalEntryNotFoundError) as error:
        reason = _first_line(error.__cause__ or error)
        raise OSError(f"{page} cannot be reached ({reason}); {again}") from None
    except (OSError, RuntimeError) as error:  # a short file, a full disk, the Xet client's errors
        raise OSError(f"{page} was not downloaded whole ({_first_line(error)}); {again}") from None


def _first_line(error: BaseException | str) -> str:
    return f"{error}".strip().partition("\n")[0] or type(error).__name__


def _select_files(
    siblings: Sequence[RepoSibling], include: Sequence[str], ignore: list[str], source: str
) -> list[RepoSibling]:
    chosen = {}
    for pattern in include:
        matching = filter_repo_objects(
            siblings, allow_patterns=pattern, ignore_patterns=ignore, key=lambda f: f.rfilename
        )
        named = {file.rfilename: file for file in matching}
        if not named:
            names = ", ".join(file.rfilename for file in siblings[:5])
            raise ValueError(
                f"{source}: no file matches {pattern!r}; found {len(siblings)} files, such as "
                f"{names}"
            )
        chosen |= named
    return list(chosen.values())


def _delete_unfinished(folder: Path) -> None:
    """Delete what a killed download had begun: tens of gigabytes that the client never takes up."""
    for unfinished in (folder / CLIENT_NOTES).rglob("*.incomplete"):
        unfinished.unlink()


def _delete_foreign(folder: Path, wanted: set[str]) -> None:
    """Delete files that a download of another repository, commit or pattern left."""
    notes = folder / CLIENT_NOTES
    for note in notes.rglob("*.metadata"):
        name = note.relative_to(notes).as_posix().removesuffix(".metadata")
        if name not in wanted:
            (folder / name).unlink(missing_ok=True)
            note.unlink()


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _describe_files(folder: Path, files: list[RepoSibling], found) -> dict[str, dict]:
    """Sizes and SHA-256 of files, unless the client ``found`` a wrong one, which is deleted."""
    names = {file.rfilename for file in files}
    for wrong in found.mismatches:
        if wrong["path"] in names:
            path = folder / wrong["path"]
            path.unlink()
            raise ValueError(
                f"{path}: expected {wrong['algorithm']} {wrong['expected']}, found "
                f"{wrong['actual']}; it was deleted, run the same command to download it again"
            )
    if missing := names.intersection(found.missing_paths):
        raise OSError(f"{folder / min(missing)} was not downloaded; run the same command again")
    for file in files:
        if file.lfs:  # just compared, and large
            remember_digest(folder / file.rfilename, file.lfs.sha256)
    # Of small files the hub knows Git's own checksum alone.
    return {
        file.rfilename: {"size": file.size, "sha256": file.lfs.sha256}
        if file.lfs
        else describe_file(folder / file.rfilename)
        for file in files
    }
