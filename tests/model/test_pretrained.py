import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i.evaluate.clip import Clip
from t2i.model.families.stable_diffusion import Family
from tests.projects import DRAWING

Tensors = dict[str, Tensor]

LOADERS: dict[str, Callable[[Path], object]] = {
    "vae": lambda base: Family(base).load_vae("cpu"),
    "unet": lambda base: Family(base).load_unet(random=False),
    "text_encoder": lambda base: Family(base).load_text("cpu"),
    "clip": lambda base: Clip(base / "clip", "cpu", 1),
}


def changed(tiny_base: Path, tmp_path: Path, part: str, change: Callable[[Tensors], Tensors]) -> Path:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (file,) = (base / part).glob("*.safetensors")
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return base


def some(tensors: Tensors) -> str:
    """Returns the name of a tensor that every part has."""
    return next(name for name in sorted(tensors) if name.endswith(("norm1.weight", "conv_norm_out.weight")))


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {name: x for name, x in t.items() if name != some(t)}, r"1 missing tensors, such as \S*norm"),
        (lambda t: t | {"foreign.weight": torch.ones(2)}, r"1 unexpected tensors, such as foreign.weight"),
        (lambda t: t | {some(t): torch.ones(7)}, r"\S*norm\S+ (\(got \[7\], wanted \[\d+\]\)|expected shape .*got .*\[7\])"),
    ],
    ids=["missing", "unexpected", "another shape"],
)
def test_tensors_that_do_not_fit_the_config_are_named(tiny_base, tmp_path, part, change, said) -> None:
    base = changed(tiny_base, tmp_path, part, change)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(base / part))}: .*{said}.*config.json.*`fetch base`"):
        LOADERS[part](base)


def test_weights_of_the_wrong_shape_cannot_sample(tiny_base, tmp_path) -> None:
    base = changed(tiny_base, tmp_path, "text_encoder", lambda t: t | {some(t): torch.ones(7)})
    with pytest.raises(ValueError, match="mismatched tensors"):
        Family(base).sample(["x"], [torch.Generator()], DRAWING)


def old_attention(tensors: Tensors) -> Tensors:
    """Renames the attention tensors of the VAE as in the first checkpoints of Stable Diffusion 1.x."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    return {
        re.sub("|".join(map(re.escape, old)), lambda found: old[found[0]], name) if ".attentions." in name else name: tensor
        for name, tensor in tensors.items()
    }


def old_text(tensors: Tensors) -> Tensors:
    """Renames the tensors of the text encoder as before transformers 4.31: with a prefix, and with `position_ids`."""
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    return named | {"text_model.embeddings.position_ids": torch.arange(16)[None]}


@pytest.mark.parametrize(("part", "change"), [("vae", old_attention), ("text_encoder", old_text)])
def test_tensor_names_of_older_checkpoints_are_accepted(tiny_base, tmp_path, part, change) -> None:
    base = changed(tiny_base, tmp_path, part, change)
    assert (base / part).is_dir()
    loaded, wanted = (LOADERS[part](folder) for folder in (base, tiny_base))
    states = [(model.model if part == "text_encoder" else model).state_dict() for model in (loaded, wanted)]  # type: ignore[attr-defined]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
