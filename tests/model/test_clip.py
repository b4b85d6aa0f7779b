import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from t2i.fetch.base import fetch_base
from t2i.model.clip import check_clip
from tests.projects import base_section


def text_alone(clip: Path) -> None:
    config = json.loads((clip / "config.json").read_text())
    text = config["text_config"] | {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}
    (clip / "config.json").write_text(json.dumps(text))


def put(**values: object) -> Callable[[Path], None]:
    def change(clip: Path) -> None:
        config = json.loads((clip / "config.json").read_text())
        (clip / "config.json").write_text(json.dumps(config | values))

    return change


def fewer_tensors(clip: Path) -> None:
    tensors = load_file(clip / "model.safetensors")
    save_file({name: tensors[name] for name in sorted(tensors)[1:]}, clip / "model.safetensors", metadata={"format": "pt"})


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "the text model alone": (text_alone, r"config.json: is for a CLIPTextModel, wanted .*openai/clip"),
    "another model": (put(model_type="siglip", architectures=["SiglipModel"]), r"config.json: is for a SiglipModel"),
    "no configuration": (lambda clip: (clip / "config.json").unlink(), r"config.json: missing"),
    "no preprocessor": (lambda clip: (clip / "preprocessor_config.json").unlink(), r"preprocessor_config.json: missing"),
    "no tokenizer": (
        lambda clip: (clip / "tokenizer.json").unlink(),
        r"vocab.json: missing; restore it, or add tokenizer.json",
    ),
    "no words": (lambda clip: (clip / "tokenizer.json").write_text("{}"), r"tokenizer.json: no words"),
    "a damaged preprocessor": (
        lambda clip: (clip / "preprocessor_config.json").write_text('{"size": "large"}'),
        r"tokenizer or preprocessor_config.json cannot be loaded",
    ),
    "a missing tensor": (fewer_tensors, r"1 missing tensors"),
    "another width": (put(projection_dim=12), r"mismatched tensors, such as \w+_projection.weight"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_a_whole_clip_is_refused(tiny_base, tmp_path, kind) -> None:
    change, said = REFUSED[kind]
    base = shutil.copytree(tiny_base, tmp_path / "base")
    check_clip(base / "clip")
    change(base / "clip")
    section = base_section(local=base)
    with pytest.raises(ValueError, match=said) as caught:
        fetch_base(section, tmp_path / "out", tmp_path / "out-clip")
    assert str(caught.value).startswith("`base.clip` ") or str(base / "clip") in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert not (tmp_path / "out").exists()
