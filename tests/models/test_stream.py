import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pusa.models.stream import DTYPES, TensorLayout, read_header, read_tensor, write_tensors


@pytest.fixture
def tensors():
    """Every type, odd sizes (which misalign what follows), a scalar and an empty tensor."""
    torch.manual_seed(0)
    typed = {
        f"t.{name}": torch.randint(0, 2, (3, 5)).to(dtype)
        for name, dtype in sorted(DTYPES.items(), reverse=True)
    }
    return {
        **typed,
        "scalar": torch.tensor(0.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "transposed": torch.randn(4, 6).T,
    }


def layout_of(tensors):
    return {name: TensorLayout(t.dtype, tuple(t.shape)) for name, t in tensors.items()}


def write(file, tensors, **metadata):
    write_tensors(file, layout_of(tensors), tensors.__getitem__, metadata)


def test_safetensors_reads_what_was_written(tmp_path, tensors):
    write(tmp_path / "a.safetensors", tensors, format="pt", note='"quoted" \n ü')
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].double(), tensor.double()), name
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": '"quoted" \n ü'}


def test_the_library_s_files_are_read(tmp_path, tensors):
    save_file(
        {n: t.contiguous() for n, t in tensors.items()}, tmp_path / "a.safetensors", {"k": "v"}
    )
    layout, metadata = read_header(tmp_path / "a.safetensors")
    assert layout == layout_of(tensors)
    assert metadata == {"k": "v"}
    for name, tensor in tensors.items():
        assert torch.equal(read_tensor(tmp_path / "a.safetensors", name).double(), tensor.double())


def test_bytes_do_not_depend_on_the_order_given(tmp_path, tensors):
    write(tmp_path / "a", tensors, one="1", two="2")
    write(tmp_path / "b", dict(reversed(tensors.items())), two="2", one="1")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_data_begins_at_a_multiple_of_eight(tmp_path):
    for length in range(9):
        write(tmp_path / "a", {"n" * (length + 1): torch.zeros(1)})
        assert int.from_bytes((tmp_path / "a").read_bytes()[:8], "little") % 8 == 0


@pytest.mark.parametrize("found", [torch.zeros(2, 3), torch.zeros(3, 2).half()])
def test_a_tensor_unlike_its_layout_is_refused(tmp_path, found):
    layout = {"w": TensorLayout(torch.float32, (3, 2))}
    with pytest.raises(ValueError, match=r"tensor w is .* expected .*\(3, 2\)"):
        write_tensors(tmp_path / "a", layout, lambda _: found, {})
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_file_that_was_there(tmp_path, tensors):
    write(tmp_path / "a", tensors)
    before = (tmp_path / "a").read_bytes()

    def fail(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "a", layout_of(tensors), fail, {})
    assert (tmp_path / "a").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kept", [0, 7, 8, 40, -1])
def test_a_cut_file_is_refused(tmp_path, tensors, kept):
    write(tmp_path / "a", tensors)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a is not a readable safetensors file"):
        read_header(tmp_path / "a")
