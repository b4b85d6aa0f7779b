import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import fetch
from t2i.core.params import load_section
from t2i.data.index import Index
from t2i.data.reader import Reader
from t2i.data.records import SPLITS
from t2i.data.storage import Folders
from t2i.encode.captions import Captions, EncodeCaptions
from t2i.encode.job import encode_set
from t2i.model.families import sdxl, stable_diffusion
from t2i.model.runtime import Runtime
from tests.projects import Project, files

pytestmark = pytest.mark.slow


class Counted(stable_diffusion.Family):
    """A family that counts the captions that its text encoder encodes, and whose word `overflow` is too much for bf16."""

    encoded: list[str]

    def encode_prompts(self, text: Any, captions) -> dict[str, torch.Tensor]:
        self.encoded = [*getattr(self, "encoded", []), *captions]
        made = super().encode_prompts(text, captions)
        if torch.is_autocast_enabled("cpu") and "overflow" in captions:
            made["encoder_hidden_states"] = made["encoder_hidden_states"].clone()
            made["encoder_hidden_states"][list(captions).index("overflow")] = 1e30
        return made


Counted.__module__ = stable_diffusion.__name__  # whose file decides the embeddings


def encoded(project: Project, out: str = "data/embeds", *, batch_size: int = 1, family: Any = None, **section) -> Any:
    """Encodes the captions of a project."""
    project.params["encode"]["captions"] |= section
    project.write()
    family = family or Counted(Path("data/base"))
    job = Captions(
        load_section(Path("params.yaml"), "encode.captions", EncodeCaptions),
        family,
        Path("data/base"),
        Path("data/raw/captions.jsonl"),
        Path("data/validation-prompts"),
        batch_size=batch_size,
        device="cpu",
        storage=Folders(),
    )
    encode_set(lambda number, processes: job, Path(out), load_section(Path("params.yaml"), "runtime", Runtime))
    return family


@pytest.fixture
def fetched(project: Project) -> Project:
    fetch.base()
    fetch.dataset()
    project.params["encode"]["captions"]["validation_prompts"] = []
    return project


def tensors(folder: str) -> dict[str, torch.Tensor]:
    found = [member for split in SPLITS for member in Index(Path(folder), split)]
    return {member.key: Reader().tensors(member)["encoder_hidden_states"] for member in found}


def test_only_new_captions_are_encoded_and_the_bytes_are_those_of_a_fresh_set(fetched) -> None:
    assert len(encoded(fetched).encoded) == 1 + 24
    metadata = fetched.folder / "images/metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("square 3", "a corrected square"))
    fetch.dataset()
    assert set(encoded(fetched).encoded) == {"", "a corrected square"}
    corrected = files(Path("data/embeds"))
    shutil.rmtree("data/work")
    encoded(fetched, "data/fresh")
    assert files(Path("data/fresh")) == corrected


def test_other_records_per_shard_encode_nothing(fetched) -> None:
    encoded(fetched)
    assert encoded(fetched, records_per_shard=5).encoded == [""]
    assert len(list(Path("data/embeds").glob("*.tar"))) > 4


def test_neighbours_never_change_a_caption(fetched) -> None:
    encoded(fetched, batch_size=5, records_per_shard=24)
    among = tensors("data/embeds")
    shutil.rmtree("data/work")
    encoded(fetched, batch_size=5, records_per_shard=1)
    alone = tensors("data/embeds")
    assert alone.keys() == among.keys()
    assert all(alone[key].equal(among[key]) for key in alone)


def test_bf16_is_close_to_fp32_and_falls_back_to_it(fetched) -> None:
    encoded(fetched, batch_size=4)
    exact = tensors("data/embeds")
    path = Path("data/raw/captions.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[5]["captions"].append("overflow")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoded(fetched, batch_size=4)
    overflow = tensors("data/embeds")[rows[5]["key"]][1]
    encoded(fetched, batch_size=4, precision="bf16")
    reduced = tensors("data/embeds")
    assert reduced[rows[5]["key"]][1].equal(overflow)
    for key, tensor in exact.items():
        assert not reduced[key][:1].equal(tensor)
        torch.testing.assert_close(reduced[key][:1].float(), tensor.float(), rtol=0, atol=0.1)


def test_both_encoders_of_sdxl_compute_in_bf16(fetched, tiny_sdxl) -> None:
    family = sdxl.Family(tiny_sdxl)
    found = {}
    for precision in ("fp32", "bf16"):
        encoded(fetched, f"data/{precision}", batch_size=4, family=family, precision=precision)
        member = Index(Path(f"data/{precision}"), "train")[0]
        found[precision] = Reader().tensors(member)
    assert found["bf16"].keys() == {"encoder_hidden_states", "text_embeds"}
    for name, tensor in found["bf16"].items():
        assert not tensor.equal(found["fp32"][name])
        torch.testing.assert_close(tensor.float(), found["fp32"][name].float(), rtol=0.05, atol=0.1)
