from pathlib import Path

import psutil
import pytest
import torch

from t2i.tools.memory import check_maps, enough_memory
from t2i.tools.sections import load_sections
from tests.projects import Project


def test_too_little_memory_is_an_error_and_the_limit_is_reset(project: Project) -> None:
    runtime = load_sections(project.folder / "params.yaml").runtime
    with pytest.raises(MemoryError, match="B of free memory"), enough_memory(runtime):
        torch.empty(psutil.virtual_memory().total // 4 + 2**28)  # fp32: never touched
    assert torch.empty(2**28).numel() == 2**28
    with pytest.raises(RuntimeError, match="shape"), enough_memory(runtime):
        torch.zeros(2).view(3)


@pytest.mark.skipif(not Path("/proc/sys/vm/max_map_count").is_file(), reason="only Linux limits the number of maps")
def test_more_shards_than_the_system_maps_are_refused() -> None:
    check_maps(300)
    with pytest.raises(ValueError, match=r"max_map_count.*`fetch.records_per_shard`"):
        check_maps(10**9)
