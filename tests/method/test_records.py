import platform

import pytest
import torch

from pusa import records
from pusa.records import atomic, describe_device


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel\t\t: 1\nmodel name\t: A: 1 @ 2 GHz\nmodel name\t: B\n",
         "A: 1 @ 2 GHz"),
        ("processor\t: 0\nBogoMIPS\t: 243.75\n", platform.machine()),  # as on ARM
        (None, platform.machine()),
    ],
)  # fmt: skip
def test_processor_is_named(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(records, "CPU_INFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert describe_device("cpu") == expected


def test_gpus_are_counted_by_name(monkeypatch):
    names = ["B", "A", "B"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])
    assert describe_device("cuda") == "1 x A, 2 x B"


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "file.txt"
    with atomic(file) as partial:
        partial.write_text("first")
        assert not file.exists() and partial.parent == file.parent
    with pytest.raises(KeyboardInterrupt), atomic(file) as partial:
        partial.write_text("seco")
        raise KeyboardInterrupt
    assert file.read_text() == "first" and list(file.parent.iterdir()) == [file]


def test_a_folder_replaces_the_one_before_and_what_a_kill_left(tmp_path):
    folder, killed = tmp_path / "folder", tmp_path / ".partial-folder"
    for old in (folder, killed):
        old.mkdir()
        (old / "old").touch()
    with atomic(folder) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert list(tmp_path.rglob("*")) == [folder, folder / "new"]
    with pytest.raises(ValueError, match="half"), atomic(folder) as partial:
        partial.mkdir()
        raise ValueError("half")
    assert list(tmp_path.rglob("*")) == [folder, folder / "new"]
