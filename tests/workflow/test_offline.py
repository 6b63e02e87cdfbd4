"""Downloads on a machine with a network, then everything else without one."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from pusa.tiny.dataset import write_dataset
from tests.hub_server import HubServer, Repo
from tests.mini import ROOT, activated, command, snakemake, write_mini

# A namespace of its own holds nothing but a loopback, which is down until someone raises it;
# torchrun's processes meet there. 0x8914 is SIOCSIFFLAGS, 1 is IFF_UP.
RAISE_LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))
os.execvp(sys.argv[1], sys.argv[1:])
"""
CUT_OFF = ["unshare", "--map-root-user", "--net", sys.executable, "-c", RAISE_LOOPBACK]
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


def can_cut_off() -> bool:
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run([*CUT_OFF, "true"], capture_output=True).returncode
    )


def connects(*address: str, wrapper: list[str]) -> bool:
    tried = subprocess.run([*wrapper, sys.executable, "-c", CONNECT, *address], capture_output=True)
    return tried.returncode == 0


@pytest.fixture
def spied(tmp_path):
    """An environment that notes HF_HUB_OFFLINE for every command of a rule; and the notes."""
    notes, folder = tmp_path / "commands.txt", tmp_path / "bin"
    folder.mkdir()
    environment = activated({k: v for k, v in os.environ.items() if not k.startswith("HF_")})
    for name in ("python", "torchrun"):
        spy, real = folder / name, shutil.which(name, path=environment["PATH"])
        spy.write_text(f'#!/bin/sh\necho "$HF_HUB_OFFLINE $*" >> {notes}\nexec {real} "$@"\n')
        spy.chmod(0o755)
    environment |= {"PATH": f"{folder}:{environment['PATH']}", "HF_HOME": str(tmp_path / "hub")}
    return environment, notes


@pytest.mark.slow
@pytest.mark.skipif(not can_cut_off(), reason="unshare may not make a network namespace here")
def test_only_downloads_need_a_network(tmp_path, spied):
    environment, notes = spied
    results = tmp_path / "results"
    write_dataset(tmp_path / "served", stream="lora", clips=4)
    config = write_mini(
        results,
        model={"source": "hub", "repo": "pusa/tiny", "path": str(tmp_path / "model")},
        dataset={"source": "hub", "repo": "pusa/clips", "path": str(tmp_path / "clips")},
        train={"validation_clips": 1},
    )
    repos = {
        "pusa/tiny": Repo(ROOT / "pusa/tiny/model"),
        "datasets/pusa/clips": Repo(tmp_path / "served"),
    }
    with HubServer(repos) as hub:
        online = environment | {"HF_ENDPOINT": hub.url}
        done = snakemake(config, "--", "download", environment=online)
        assert done.returncode == 0, done.stdout[-4000:]
        assert {p.name for p in (tmp_path / "clips/train").glob("*.mp4")} == {
            f"video_{n:06d}.mp4" for n in range(1, 5)
        }
        # the namespace has no way out, not even to the server on this machine
        address = ("127.0.0.1", str(hub.server_port))
        assert connects(*address, wrapper=[])
        assert not connects(*address, wrapper=CUT_OFF)
    assert not connects("192.0.2.1", "80", wrapper=CUT_OFF)
    assert {line.split()[0] for line in notes.read_text().splitlines()} == {"0"}

    notes.unlink()
    table = results / "tables/table1.csv"
    done = subprocess.run(
        [*CUT_OFF, *command(config, "--", str(table))],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert len(pd.read_csv(table)) > 2
    commands = notes.read_text().splitlines()
    assert {"train", "sample-suite"} <= {word for line in commands for word in line.split()}
    assert {line.split()[0] for line in commands} == {"1"}
