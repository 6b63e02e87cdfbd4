import platform

import pytest
import torch

from pusa import records as device
from pusa.records import describe_device


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
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert describe_device("cpu") == expected


def test_gpus_are_counted_by_name(monkeypatch):
    names = ["B", "A", "B"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])
    assert describe_device("cuda") == "1 x A, 2 x B"
