from pathlib import Path

import psutil
import pytest
import torch

from t2i.tools.memory import available_memory, check_maps, enough_memory, figure, is_out_of_memory, peak_memory, state_bytes
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


@pytest.mark.parametrize("there", ["cuda", "xpu"])
def test_the_memory_of_a_gpu_is_its_own(project: Project, machine_with, monkeypatch, there) -> None:
    machine_with(there)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda: (3, 8))
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: 5)
    sections = load_sections(project.folder / "params.yaml")
    runtime = sections.runtime.model_copy(update={"device": there})
    assert (available_memory(runtime), peak_memory(runtime)) == (3, 5)
    on_cpu = runtime.model_copy(update={"ema_device": "cpu"})
    assert state_bytes(sections.train, runtime, 10, 10) - state_bytes(sections.train, on_cpu, 10, 10) == 40


def test_the_memory_of_mps_is_that_of_the_computer(project: Project, machine_with, monkeypatch) -> None:
    machine_with("mps")
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5)
    sections = load_sections(project.folder / "params.yaml")
    runtime = sections.runtime.model_copy(update={"device": "mps"})
    assert 0 < available_memory(runtime) <= psutil.virtual_memory().total
    assert peak_memory(runtime) == 5
    on_cpu = runtime.model_copy(update={"ema_device": "cpu"})
    assert state_bytes(sections.train, runtime, 10, 10) == state_bytes(sections.train, on_cpu, 10, 10)


def test_figures_in_messages_have_no_exponent() -> None:
    assert [figure(value) for value in (0.05738, 2.5, 99.99, 859.5, 2567.46)] == ["0.0574", "2.5", "100", "860", "2,567"]


@pytest.mark.parametrize(
    "words", ["MPS backend out of memory (MPS allocated: 1 GB)", "XPU out of memory.", "can't allocate memory"]
)
def test_out_of_memory_is_known_by_its_words(words) -> None:
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
