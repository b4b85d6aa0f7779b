import os
import platform
import subprocess
import sys

import pytest

from t2i.tools.surroundings import bf16_finding
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


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONEDNN_MAX_CPU_ISA hides instructions of x86 processors alone")
def test_bf16_without_instructions_for_it_takes_longer() -> None:
    code = "from t2i.tools.surroundings import bf16_time; assert max(bf16_time() for _ in range(3)) > 1.2"  # 40 on an idle CPU
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
