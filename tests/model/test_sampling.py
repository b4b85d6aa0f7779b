from functools import partial
from pathlib import Path

import psutil
import pytest

from t2i.core import launcher
from t2i.core.params import load_section
from t2i.model.family import load_family
from t2i.model.runtime import Runtime
from t2i.model.sampling import Sampler
from tests.projects import DRAWING, ROOT

PROMPTS = [f"square {number}" for number in range(7)]  # three chunks
SEEDS = [(0, prompt) for prompt in PROMPTS]


def of(processes: int) -> Runtime:
    return load_section(ROOT / "params.yaml", "runtime", Runtime).model_copy(update={"processes": processes})


def drawn(opened: partial, processes: int, prompts: list[str] = PROMPTS) -> list[bytes]:
    with Sampler(opened, of(processes)) as sampler:
        its = sampler.draw(DRAWING, prompts, SEEDS[: len(prompts)])
    assert {image.size for image in its} == {(32, 32)}
    return [image.tobytes() for image in its]


@pytest.mark.slow
def test_several_processes_draw_what_one_draws(tiny_base, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    opened = partial(load_family, "stable_diffusion", tiny_base)
    together = drawn(opened, 2)
    assert together == drawn(opened, 1)
    assert len({*together}) == len(PROMPTS)
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_a_single_chunk_starts_no_process(tiny_base, monkeypatch) -> None:
    monkeypatch.setattr(launcher, "Workers", None)
    assert len(drawn(partial(load_family, "stable_diffusion", tiny_base), 2, PROMPTS[:3])) == 3


def test_no_prompts_no_images(tiny_base) -> None:
    assert Sampler(partial(load_family, "stable_diffusion", tiny_base), of(2)).draw(DRAWING, [], []) == []


@pytest.mark.slow
def test_a_model_that_another_process_cannot_open_is_its_error(tiny_base, tmp_path) -> None:
    link = tmp_path / "base"
    link.symlink_to(tiny_base)
    with Sampler(partial(load_family, "stable_diffusion", link), of(2)) as sampler:
        link.unlink()
        with pytest.raises(ValueError, match=str(Path("base") / "vae")):
            sampler.draw(DRAWING, PROMPTS, SEEDS)
