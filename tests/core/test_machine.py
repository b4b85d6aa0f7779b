import subprocess
import sys

import pytest

from t2i.core.machine import keep_freed_memory
from tests.projects import ROOT

FAULTS = """
import resource
from t2i.core.machine import keep_freed_memory
{call}
for turn in range(6):
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * (48 << 20)  # above 32 MiB, the most that glibc keeps of itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(call=call)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_used_again_up_to_the_limit() -> None:
    kept = faults("keep_freed_memory(64 << 20)")
    assert 4 * kept < faults("keep_freed_memory(1 << 20)")
    assert 4 * kept < faults("")


def test_other_systems_keep_their_own_way(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory(1)
