import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from stages import fetch
from t2i.core.params import load_section
from t2i.data.index import Index
from t2i.data.reader import Reader
from t2i.data.records import SPLITS
from t2i.data.storage import Folders
from t2i.encode.images import Images
from t2i.encode.job import encode_set
from t2i.encode.views import EncodeImages
from t2i.model.families.stable_diffusion import Family
from t2i.model.runtime import Runtime
from tests import tiny
from tests.projects import Project, files

pytestmark = pytest.mark.slow


class Counted(Family):
    """A family that counts the views that its VAE encodes, the padding included, and can spoil them."""

    encoded = 0

    def encode_pixels(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        Counted.encoded += len(pixels)
        return super().encode_pixels(vae, pixels)


Counted.__module__ = Family.__module__  # whose file decides the moments


def shards(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if name.endswith(".tar")}


def encoded(project: Project, out: str = "data/latents", *, batch_size: int = 1, processes: int = 1, **section: Any) -> int:
    """Encodes the images of a project; returns the number of views that the VAE encoded."""
    project.params["encode"]["images"] |= section
    project.write()
    Counted.encoded = 0
    encode(Counted(Path("data/base")), out, batch_size=batch_size, processes=processes)
    return Counted.encoded


def encode(family: Family, out: str, *, batch_size: int, processes: int) -> None:
    """Encodes the images of a project with a family."""
    section, raw = load_section(Path("params.yaml"), "encode.images", EncodeImages), Path("data/raw/images")
    how: dict[str, Any] = {"batch_size": batch_size, "processes": processes, "device": "cpu", "verify": True}
    job = Images(section, family, Path("data/base"), raw, **how, storage=Folders())
    encode_set(lambda number, processes: job, Path(out), load_section(Path("params.yaml"), "runtime", Runtime))


@pytest.fixture
def fetched(project: Project) -> Project:
    fetch.base()
    fetch.dataset()
    return project


def grow(project: Project, count: int) -> None:
    """Gives a project `count` images, of which those that were there stay the same."""
    shutil.rmtree(project.folder / "images")
    tiny.make_images(project.folder / "images", count)
    fetch.dataset()


def test_pools_of_any_size_give_the_same_bytes(fetched) -> None:
    for processes in (1, 2, 4):
        assert encoded(fetched, f"data/{processes}", batch_size=5, processes=processes, flip=True) == 45
        shutil.rmtree("data/work")
    assert files(Path("data/1")) == files(Path("data/2")) == files(Path("data/4"))


def test_a_grown_set_encodes_new_images_alone_and_equals_a_fresh_one(fetched) -> None:
    assert encoded(fetched) == 24
    before = shards(Path("data/latents"))
    shutil.rmtree("data/latents")  # as DVC does
    grow(fetched, 31)
    assert encoded(fetched) == 7
    grown = files(Path("data/latents"))
    shutil.rmtree("data/work")
    assert encoded(fetched, "data/fresh") == 31
    assert files(Path("data/fresh")) == grown
    grow(fetched, 24)
    assert encoded(fetched) == 0
    assert shards(Path("data/latents")) == before


def test_a_damaged_record_of_the_store_is_encoded_again(fetched) -> None:
    encoded(fetched)
    before = shards(Path("data/latents"))
    reader, (member, *_) = Reader(), Index(Path("data/latents"), "train")
    content = bytes(reader.content(member))
    for path in Path("data/work").rglob("*.tar"):
        damaged = bytearray(path.read_bytes())
        if content in damaged:
            damaged[damaged.index(content) + member.size - 1] ^= 1
            path.unlink()
            path.write_bytes(damaged)
    shutil.rmtree("data/latents")
    assert encoded(fetched) == 1
    assert shards(Path("data/latents")) == before


def test_only_parameters_that_decide_a_record_encode_it_again(fetched) -> None:
    assert encoded(fetched) == 24
    assert encoded(fetched, psnr_records=2, seed=7) == 0
    heldout = len(Index(Path("data/latents"), "heldout"))
    assert encoded(fetched, crop={"name": "random", "views": 1}) == 24 - heldout  # held-out views are centred
    assert encoded(fetched, seed=8) == 24 - heldout
    assert encoded(fetched, background="#000000") == 24


def test_a_record_has_the_same_bits_at_every_place_of_a_batch(fetched) -> None:
    family = Family(Path("data/base"))
    vae, pixels = family.load_vae("cpu"), torch.rand(5, 3, 32, 32) * 2 - 1
    alone = torch.zeros_like(pixels)
    alone[0] = pixels[0]
    wanted = family.encode_pixels(vae, alone)[0]
    for place in range(5):
        assert family.encode_pixels(vae, pixels.roll(place, 0))[place].equal(wanted)


def test_neighbours_never_change_a_record(fetched) -> None:
    encoded(fetched, batch_size=5)
    among = {m.key: bytes(Reader().content(m)) for split in SPLITS for m in Index(Path("data/latents"), split)}
    shutil.rmtree("data/work")
    grow(fetched, 6)
    encoded(fetched, batch_size=5)
    few = {m.key: bytes(Reader().content(m)) for split in SPLITS for m in Index(Path("data/latents"), split)}
    assert len(few) == 6
    assert few.items() <= among.items()


class Coarse(Family):
    """A family whose VAE is the mean of 2 x 2 pixels, shifted where it does not compute in fp32."""

    shift = 0.0

    def encode_pixels(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        means = functional.avg_pool2d(pixels, 2) + self.shift * torch.is_autocast_enabled("cpu")
        return functional.pad(means, (0, 0, 0, 0, 0, 5))

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(latents[:, :3] / self.scaling_factor, scale_factor=2)


Coarse.__module__ = Family.__module__


def test_bf16_is_refused_if_images_lose_more_than_in_fp32(fetched, monkeypatch) -> None:
    fetched.params["encode"]["images"]["precision"] = "bf16"
    fetched.write()
    encode(Coarse(Path("data/base")), "data/latents", batch_size=5, processes=1)
    Path("data/latents").rename("data/before")
    shutil.rmtree("data/work")
    monkeypatch.setattr(Coarse, "shift", 0.1)
    with pytest.raises(
        ValueError, match=r"dB if `encode\.images\.precision` is fp32 instead of bf16, wanted at most 0\.1 dB"
    ) as error:
        encode(Coarse(Path("data/base")), "data/latents", batch_size=5, processes=1)
    assert not Path("data/latents").exists()
    worse, exact = map(float, re.findall(r"([-\d.]+) dB", str(error.value))[:2])
    assert worse < exact - 0.1
