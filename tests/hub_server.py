"""A local server that speaks as much of the hub's protocol as a download needs.

``python tests/hub_server.py --repo org/name=FOLDER --repo datasets/org/name=FOLDER`` serves
folders as repositories of one commit, on the branch ``main``, until it is interrupted; it
prints the URL to give as ``HF_ENDPOINT``. Tests use `HubServer`, which can also misbehave.
"""

import argparse
import json
import re
import threading
from dataclasses import dataclass, field
from hashlib import file_digest, sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: What the hub stores with Git LFS, and so knows the SHA-256 of.
LFS = {".safetensors", ".mp4", ".pth", ".pt", ".bin", ".zip"}
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/([^/]+)")
RESOLVE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BLOCK = 1 << 16


@dataclass
class Repo:
    """A folder as a repository; only the holder of ``token``, if one is set, may read its files."""

    folder: Path
    token: str | None = None

    def __post_init__(self):
        folder = Path(self.folder)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        self.files = {n: _describe(folder / n) for n in names if not n.startswith(".")}
        self.commit = sha1(json.dumps(self.files).encode()).hexdigest()


def _describe(path: Path) -> dict:
    with path.open("rb") as file:
        size = path.stat().st_size
        if path.suffix in LFS:
            return {"size": size, "sha256": file_digest(file, "sha256").hexdigest()}
        blob = sha1(b"blob %d\0" % size + file.read()).hexdigest()
        return {"size": size, "blob": blob}


@dataclass
class Request:
    """One line of the server's log; ``sent`` is how many bytes of a file went out."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    sent: int = 0


@dataclass
class Faults:
    """What goes wrong with a file, by its path in the repository."""

    cut: dict[str, int] = field(default_factory=dict)
    """After so many bytes the connection breaks, once."""
    hold: dict[str, int] = field(default_factory=dict)
    """After so many bytes the server says no more, and sets ``holding``."""
    corrupt: set[str] = field(default_factory=set)
    """The first byte is another."""
    short: set[str] = field(default_factory=set)
    """The second half is missing, and the server does not notice."""
    holding: threading.Event = field(default_factory=threading.Event)


class HubServer(ThreadingHTTPServer):
    """Serves ``repos``, by ``org/name`` or ``datasets/org/name``, while it is entered."""

    daemon_threads = True

    def __init__(self, repos: dict[str, Repo], port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.repos = repos
        self.faults = Faults()
        self.log: list[Request] = []
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def point_client(self, monkeypatch) -> None:
        """Have the hub's client in this process ask this server, whatever it read when imported."""
        settings = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.delenv("HF_TOKEN", raising=False)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.stopped.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that went away in the middle is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        self.entry = Request(self.command, path, headers["Range"], headers["Authorization"])
        self.server.log.append(self.entry)
        if match := API.fullmatch(path):
            kind, name, call, revision = match.groups()
            repo = self._find("datasets/" * (kind == "datasets") + name, revision)
            if repo:
                self._send_json(_info(name, repo) if call == "revision" else _tree(repo))
        elif match := RESOLVE.fullmatch(path):
            repo = self._find(*match.groups()[:2])
            if repo and repo.token and self.headers["Authorization"] != f"Bearer {repo.token}":
                self._refuse(403, "GatedRepo", "Access to this repository is restricted.")
            elif repo and match[3] not in repo.files:
                self._refuse(404, "EntryNotFound", f"{match[3]} does not exist")
            elif repo:
                self._send_file(repo, match[3])
        else:
            self._refuse(404, "RepoNotFound", f"nothing is served at {path}")

    def _find(self, name: str, revision: str) -> Repo | None:
        repo = self.server.repos.get(name)
        if repo is None:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif revision not in ("main", repo.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo
        return None

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_json(self, value) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, repo: Repo, name: str) -> None:
        size, faults = repo.files[name]["size"], self.server.faults
        etag = repo.files[name].get("sha256") or repo.files[name]["blob"]
        start = int(self.entry.range.removeprefix("bytes=").rstrip("-")) if self.entry.range else 0
        end = size // 2 if name in faults.short and self.command == "GET" else size
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", repo.commit)
        if "sha256" in repo.files[name]:
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(size))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, hold = faults.cut.pop(name, None), faults.hold.get(name)
        stop = min(n for n in (end, cut, hold) if n is not None)
        with (Path(repo.folder) / name).open("rb") as file:
            file.seek(start)
            while (at := start + self.entry.sent) < stop:
                block = file.read(min(BLOCK, stop - at))
                if at == 0 and name in faults.corrupt:
                    block = bytes([block[0] ^ 1]) + block[1:]
                self.wfile.write(block)
                self.entry.sent += len(block)
        if hold is not None:
            faults.holding.set()
            self.server.stopped.wait()
        self.close_connection = self.close_connection or stop < end


def _info(name: str, repo: Repo) -> dict:
    siblings = []
    for path, file in repo.files.items():
        sibling = {"rfilename": path, "size": file["size"], "blobId": _blob(file)}
        if "sha256" in file:
            sibling["lfs"] = {"size": file["size"], "sha256": file["sha256"], "pointerSize": 0}
        siblings.append(sibling)
    return {"id": name, "sha": repo.commit, "private": False, "siblings": siblings}


def _tree(repo: Repo) -> list[dict]:
    tree = []
    for path, file in repo.files.items():
        entry = {"type": "file", "path": path, "size": file["size"], "oid": _blob(file)}
        if "sha256" in file:
            entry["lfs"] = {"size": file["size"], "oid": file["sha256"], "pointerSize": 0}
        tree.append(entry)
    return tree


def _blob(file: dict) -> str:
    """The Git id; that of an LFS file is its pointer's, of which nothing here depends."""
    return file.get("blob") or sha1(file["sha256"].encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve folders as hub repositories.")
    parser.add_argument("--repo", action="append", required=True, metavar="[datasets/]ORG/NAME=DIR")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    served = (repo.split("=", 1) for repo in options.repo)
    with HubServer({name: Repo(Path(folder)) for name, folder in served}, options.port) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
