import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from t2i.tools.sections import load_sections
from t2i.tools.surroundings import Finding, bf16_finding, device, without_gpu
from tests.projects import ROOT

FP32 = {"train": "fp32", "evaluate": "fp32"}


def test_emulated_bf16_is_noted_if_a_section_uses_it() -> None:
    finding = bf16_finding(2.9, {"train": "bf16", "evaluate": "fp32"})
    assert finding.state == "note"
    assert "2.9 times" in finding.message
    assert "`train.precision` to fp32" in finding.message
    assert "evaluate" not in finding.message
    assert bf16_finding(2.9, FP32).state == "ok"
    assert bf16_finding(0.5, {"train": "bf16", "evaluate": "bf16"}).state == "ok"


def found_on(monkeypatch: pytest.MonkeyPatch, accelerator: str) -> list[Finding]:
    """Returns the findings about an accelerator, of which PyTorch counts two."""
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for module in (torch.cuda, torch.xpu):
        monkeypatch.setattr(module, "get_device_name", lambda: "Fast One")
    sections = load_sections(ROOT / "params.yaml")
    runtime = sections.runtime.model_copy(update={"device": accelerator})
    return [finding for finding in device(replace(sections, runtime=runtime)) if finding.about == "device"]


@pytest.mark.parametrize(("accelerator", "name"), [("mps", "GPU of Apple"), ("xpu", "Fast One")])
def test_an_untested_device_is_named_and_noted(machine_with, monkeypatch, accelerator, name) -> None:
    machine_with(accelerator)
    named, note = found_on(monkeypatch, accelerator)
    assert named.message == f"{accelerator}: 2 x {name}, torch {torch.__version__}"
    assert note.state == "note"
    assert f"{accelerator} is not tested" in note.message
    assert "`runtime.device: cpu` is" in note.message


def test_cuda_is_noted_only_through_rocm(machine_with, monkeypatch) -> None:
    machine_with("cuda")
    (named,) = found_on(monkeypatch, "cuda")
    assert named == ("ok", "device", f"cuda: 2 x Fast One, torch {torch.__version__}")
    monkeypatch.setattr(torch.version, "hip", "7.0")
    _, note = found_on(monkeypatch, "cuda")
    assert "ROCm is not tested" in note.message


@pytest.mark.parametrize(
    ("accelerator", "hub", "parameters", "said"),
    [
        (None, None, 860_000_000, "a UNet of 860 M parameters trains for days on a CPU"),
        (None, "someone/base", 860_000_000, "860 M"),
        (None, "someone/base", 0, "size of Stable Diffusion's trains for days"),
        (None, "someone/small", 5_000_000, None),
        (None, None, 5_000_000, None),
        ("cuda", "someone/base", 860_000_000, None),
    ],
)
def test_a_large_base_without_a_gpu_is_noted(machine_with, accelerator, hub, parameters, said) -> None:
    machine_with(accelerator)
    section = load_sections(ROOT / "params.yaml").base.model_copy(update={"hub": hub})
    found = list(without_gpu(section, parameters))
    assert [(finding.state, finding.about) for finding in found] == ([("note", "device")] if said else [])
    assert all(said in finding.message for finding in found)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONEDNN_MAX_CPU_ISA hides instructions of x86 processors alone")
def test_bf16_without_instructions_for_it_takes_longer() -> None:
    code = "from t2i.tools.surroundings import bf16_time; assert max(bf16_time() for _ in range(3)) > 1.2"  # 40 on an idle CPU
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
