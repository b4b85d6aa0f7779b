import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i.model.tensor_file import StoredTensors, write_tensors

TENSORS = {
    "fp32": torch.randn(3, 5),
    "a scalar": torch.tensor(2.0),
    "nothing": torch.zeros(0),
    "fp16": torch.randn(7).half(),
    "bf16": torch.randn(2, 2, 1, 1).bfloat16(),
    "whole numbers": torch.arange(4)[None],
    "not contiguous": torch.randn(4, 6).T,
    'quoted "name" é': torch.ones(1),
}


def test_safetensors_reads_what_is_written(tmp_path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, TENSORS, TENSORS.__getitem__, {"title": "a"})
    read = load_file(file)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert StoredTensors([file]).metadata == {"title": "a"}


def test_the_same_tensors_give_the_same_bytes(tmp_path) -> None:
    for name, names in (("a", list(TENSORS)), ("b", list(reversed(TENSORS)))):
        write_tensors(tmp_path / name, names, TENSORS.__getitem__, {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_each_tensor_is_made_once_and_let_go(tmp_path) -> None:
    made: list[str] = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return torch.ones(2)

    write_tensors(tmp_path / "a", ["one", "two"], make, {})
    assert made == ["one", "two"]


def test_several_files_are_one_mapping(tmp_path) -> None:
    for number, name in enumerate(TENSORS):
        save_file({name: TENSORS[name].contiguous()}, tmp_path / f"{number}.safetensors", {"of": name})
    stored = StoredTensors(sorted(tmp_path.iterdir()))
    assert set(stored) == TENSORS.keys()
    assert stored.shape("bf16") == (2, 2, 1, 1)
    assert (stored.dtype("bf16"), stored.dtype("fp32")) == ("BF16", "F32")


@pytest.mark.parametrize("content", [b"", b"no tensors", bytes(100)])
def test_a_file_that_is_not_safetensors_is_named(tmp_path, content) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors: not a complete safetensors file"):
        StoredTensors([tmp_path / "a.safetensors"])
