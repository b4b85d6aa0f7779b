import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from t2i.fetch.base import fetch_base
from t2i.fetch.weights import check_weights
from tests.projects import ROOT, base_section


def with_header(header: dict[str, object] | bytes, payload: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def tensor(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


DAMAGED = {
    "empty": b"",
    "a page": b"<html>not found</html>",
    "cut in its length": b"\x08\x00",
    "cut in its header": with_header(tensor(), b"", 400),
    "cut in its payload": with_header(tensor(), bytes(5)),
    "too long": with_header(tensor(), bytes(9)),
    "a header of 2**62 bytes": with_header(tensor(), bytes(8), 2**62),
    "a header that is not JSON": with_header(b"{'w'", bytes(8)),
    "a header that is not an object": with_header(b"[]", bytes(8)),
    "an unknown dtype": with_header(tensor("PICKLE"), bytes(8)),
    "another dtype": with_header(tensor("F64"), bytes(8)),
    "another shape": with_header(tensor(shape=(3,)), bytes(8)),
    "a shape that overflows": with_header(tensor(shape=(2**62, 2**62)), bytes(8)),
    "a shape below 0": with_header(tensor(shape=(-2,)), bytes(8)),
    "offsets beyond its end": with_header(tensor(offsets=(0, 1 << 40)), bytes(8)),
    "offsets backwards": with_header(tensor(offsets=(8, 0)), bytes(8)),
    "a hole": with_header(tensor(offsets=(8, 16)), bytes(16)),
    "tensors that overlap": with_header(tensor() | {"v": tensor()["w"]}, bytes(8)),
}


def fetch(base: Path, out: Path, variant: str | None = None) -> None:
    fetch_base(base_section(local=base, variant=variant), out / "base", out / "base-clip")


def with_weights(tiny_base: Path, folder: Path, *, variant: str | None = None, sharded: bool = False) -> Path:
    """Returns a copy of the tiny base whose pipeline has weights of one variant, in one file or in several."""
    base = shutil.copytree(tiny_base, folder)
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)):
        model = kind.from_pretrained(base / part)
        for file in (base / part).glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(base / part, variant=variant, max_shard_size="4KB" if sharded else "1GB")
    return base


@pytest.mark.parametrize("kind", DAMAGED)
def test_an_incomplete_safetensors_file_is_named(tmp_path, kind) -> None:
    (tmp_path / "x.safetensors").write_bytes(DAMAGED[kind])
    with pytest.raises(ValueError, match=r"^.*/x.safetensors: not a complete safetensors file \(.+\): replace it") as caught:
        check_weights(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_with_nan_or_infinity_is_named(tmp_path, dtype, number) -> None:
    if dtype == torch.float8_e4m3fn:
        number = float("nan")  # this type has no infinity
    bad = torch.zeros(3, 2)
    bad[1, 1] = number
    tensors = {"good": torch.ones(3), "count": torch.arange(3), "layer.bad": bad}
    save_file({name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors: tensor layer.bad has NaN or infinite values"):
        check_weights(tmp_path / "x.safetensors")


def test_complete_and_finite_weights_pass(tmp_path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool)
    save_file({str(kind): torch.ones(3).to(kind) for kind in kinds} | {"none": torch.ones(0)}, tmp_path / "x.safetensors")
    check_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "clip"])
def test_a_base_with_bad_weights_leaves_no_output(tiny_base, tmp_path, part) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "other")
    (file,) = (base / part).glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, file)
    with pytest.raises(ValueError, match=rf"{file}: tensor {re.escape(name)} has NaN"):
        fetch(base, tmp_path / "data")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"{file}: not a complete safetensors file"):
        fetch(base, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_weights_are_copied_with_their_index(tiny_base, tmp_path, variant) -> None:
    base = with_weights(tiny_base, tmp_path / "other", variant=variant, sharded=True)
    assert len(list((base / "unet").glob("*-of-*"))) > 2
    fetch(base, tmp_path / "data", variant)
    copied = UNet2DConditionModel.from_pretrained(tmp_path / "data/base/unet", use_safetensors=True).state_dict()
    for name, weight in UNet2DConditionModel.from_pretrained(tiny_base / "unet").state_dict().items():
        assert torch.equal(weight, copied[name])
    CLIPTextModel.from_pretrained(tmp_path / "data/base/text_encoder")


def test_shards_with_diffusers_old_names_are_copied(tiny_base, tmp_path) -> None:
    base = with_weights(tiny_base, tmp_path / "other", variant="fp16", sharded=True)
    for part in ("unet", "vae", "text_encoder"):
        for file in (base / part).glob("*.fp16*"):
            file.rename(file.with_name(re.sub(r"\.fp16(-\d+-of-\d+)\.", r"\1.fp16.", file.name)))
        (index,) = (base / part).glob("*.index.fp16.json")
        index = index.rename(index.with_name(index.name.replace("index.fp16.json", "fp16.index.json")))
        index.write_text(re.sub(r"\.fp16(-\d+-of-\d+)\.", r"\1.fp16.", index.read_text()))
    fetch(base, tmp_path / "data", "fp16")
    UNet2DConditionModel.from_pretrained(tmp_path / "data/base/unet", use_safetensors=True)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_missing_shard_is_named(tiny_base, tmp_path, part) -> None:
    base = with_weights(tiny_base, tmp_path / "other", sharded=True)
    shard = sorted((base / part).glob("*-of-*"))[-1]
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard}: missing, though .*index.json lists it"):
        fetch(base, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_tensor_missing_from_a_shard_is_named(tiny_base, tmp_path, part) -> None:
    base = with_weights(tiny_base, tmp_path / "other", sharded=True)
    shard = sorted((base / part).glob("*-of-*"))[0]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"other: {part}: 1 missing tensors, such as (text_model\.)?{re.escape(name)}"):
        fetch(base, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("there", "asked", "remedy"), [("fp16", None, "fp16"), (None, "fp16", "null"), ("bf16", "fp16", "bf16")]
)
def test_weights_of_another_variant_are_named(tiny_base, tmp_path, there, asked, remedy, sharded) -> None:
    base = with_weights(tiny_base, tmp_path / "other", variant=there, sharded=sharded)
    with pytest.raises(ValueError, match=rf"other/\w+: .*set `base.variant: {remedy}`"):
        fetch(base, tmp_path / "data", asked)


def test_an_index_of_another_variant_is_not_copied(tiny_base, tmp_path) -> None:
    base = with_weights(tiny_base, tmp_path / "other", sharded=True)
    UNet2DConditionModel.from_pretrained(tiny_base / "unet").save_pretrained(tmp_path / "one", variant="fp16")
    CLIPTextModel.from_pretrained(tiny_base / "text_encoder").save_pretrained(tmp_path / "two", variant="fp16")
    AutoencoderKL.from_pretrained(tiny_base / "vae").save_pretrained(tmp_path / "three", variant="fp16")
    for part, folder in (("unet", "one"), ("text_encoder", "two"), ("vae", "three")):
        for file in (tmp_path / folder).glob("*.safetensors"):
            shutil.copyfile(file, base / part / file.name)
    fetch(base, tmp_path / "data", "fp16")
    assert not list((tmp_path / "data").rglob("*.safetensors.index.json"))


def test_pickled_weights_are_refused_with_a_remedy(tiny_base, tmp_path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "other")
    (base / "unet/diffusion_pytorch_model.safetensors").rename(base / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"unet: .*diffusion_pytorch_model.bin .*safe_serialization=True"):
        fetch(base, tmp_path / "data")


def test_a_damaged_cached_file_is_named_by_its_real_path(tmp_path) -> None:
    (tmp_path / "blob").write_bytes(b"")
    (tmp_path / "x.safetensors").symlink_to("blob")
    with pytest.raises(ValueError, match=rf"x.safetensors: .*: delete {tmp_path}/blob, "):
        check_weights(tmp_path / "x.safetensors")


@pytest.mark.slow
def test_at_most_one_tensor_is_in_memory(tmp_path) -> None:
    """Checks 40 tensors of 4 MiB in float64, with memory for the mapped file and 48 MiB more."""
    save_file({"a": torch.ones(1)}, tmp_path / "small.safetensors")
    save_file({f"{n:02d}": torch.ones(1 << 19, dtype=torch.float64) for n in range(40)}, tmp_path / "large.safetensors")
    program = """
import re, resource
from pathlib import Path
import torch
from t2i.fetch.weights import check_weights
torch.set_num_threads(1)
check_weights(Path("small.safetensors"))
now = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (now + (160 + 48 << 20),) * 2)
check_weights(Path("large.safetensors"))
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True)
