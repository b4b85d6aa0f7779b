"""Fetches the pretrained pipeline, and the CLIP model for evaluation, to the folders that the other stages read."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from t2i.core.files import fresh, write_json
from t2i.fetch.hub import Repository, download, split_revision
from t2i.fetch.weights import check_weights
from t2i.model.base import NOT_TAKEN, Base

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors", "*-of-*.safetensors")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def fetch_base(section: Base, out: Path, clip_out: Path) -> str:
    """Copies the base to `out` and the CLIP model to `clip_out`. Only safetensors weights are accepted.

    Returns:
        The source of the base and its commit, as text.

    Raises:
        ValueError: if a file is missing, damaged or unsafe; names the file and the remedy.
    """
    source, origin = _pipeline(section)
    with fresh(out) as folder, fresh(clip_out) as clip_folder:
        _copy_pipeline(source, folder, section.variant)
        if section.vae is not None:
            vae, its_origin = _model(section, "vae", section.vae)
            _replace_vae(vae, folder)
            origin |= {f"vae_{name}": value for name, value in its_origin.items()}
        if section.clip_skip:
            _leave_out_layers(folder / "text_encoder", section.clip_skip)
            origin |= {"clip_skip": str(section.clip_skip)}
        write_json(folder / "source.json", origin)
        clip_source, clip_origin = _model(section, "clip", section.clip)
        _copy_model(clip_source, clip_folder, None)
        write_json(clip_folder / "source.json", clip_origin)
    return " at ".join(str(part) for part in origin.values() if part)


def _pipeline(section: Base) -> tuple[Path, dict[str, str | None]]:
    """Returns the folder of the base, local or downloaded, with its source and commit."""
    if section.hub is None:
        return Path(section.local), {"source": _named(section.local), "commit": None}
    base = Repository("base.hub", section.hub, section.revision)
    snapshot = download(base, ["model_index.json"])
    names = _parts(snapshot)
    weights = [f"*.{section.variant}.safetensors"] if section.variant else list(_WEIGHTS)
    patterns = [f"{name}/{pattern}" for name in names for pattern in ("*.json", "*.txt", *weights)]
    download(base._replace(revision=snapshot.name), patterns)
    return snapshot, {"source": section.hub, "commit": snapshot.name}


def _model(section: Base, key: str, named: str) -> tuple[Path, dict[str, str | None]]:
    """Returns the folder of a single model, local or downloaded, with its source and commit."""
    if Path(named).is_dir():
        if not Path(named).resolve().is_relative_to(Path(section.local).resolve()):
            raise ValueError(f"`base.{key}` {named!r} must be inside `base.local` {section.local!r}, so that DVC tracks it")
        return Path(named), {"source": _named(named), "commit": None}
    name, revision = split_revision(named)
    snapshot = download(Repository(f"base.{key}", name, revision), ["*.json", "*.txt", *_WEIGHTS])
    return snapshot, {"source": name, "commit": snapshot.name}


def check_origin(section: Base, base: Path) -> None:
    """Raises a ValueError if the base that was fetched is not the one that the section `base` names."""
    found = _read(base / "source.json").get("source") if (base / "source.json").is_file() else None
    wanted = section.hub or _named(section.local)
    if found not in (None, wanted):
        raise ValueError(f"{base}: holds {found}, but the section `base` names {wanted}; run `t2i fetch base`")


def _named(folder: str) -> str:
    """Returns a folder's name for the model card, without the absolute path, which is private."""
    return Path(folder).name if Path(folder).is_absolute() else folder


def _parts(source: Path) -> dict[str, Any]:
    """Returns the entries of model_index.json for the parts of the pipeline that this project uses."""
    index_file = source / "model_index.json"
    if not index_file.is_file():
        raise ValueError(
            f"{index_file}: missing: {source} is not a pipeline in diffusers' layout; convert a single-file checkpoint with "
            "`StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)`"
        )
    index = _read(index_file)
    parts = {name: kind for name, kind in index.items() if isinstance(kind, list) and any(kind[:1]) and name not in NOT_TAKEN}
    for name in parts:
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"{index_file}: unsafe name {name!r}, wanted the name of a part, such as `unet`")
    return parts


def _copy_pipeline(source: Path, out: Path, variant: str | None) -> None:
    for name in _parts(source):
        _copy_model(source / name, out / name, variant)
    index = _read(source / "model_index.json")
    index |= {name: [None, None] for name in NOT_TAKEN if name in index}
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    write_json(out / "model_index.json", index)
    for licence in filter(Path.is_file, source.glob("LICENSE*")):
        shutil.copyfile(licence, out / (licence.name if licence.suffix in (".md", ".txt") else f"{licence.name}.txt"))


def _copy_model(source: Path, out: Path, variant: str | None) -> None:
    """Copies configurations, vocabularies and safetensors weights; removes the variant from the names of the weights."""
    out.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        raise ValueError(f"{source}: missing, though model_index.json names it")
    infix = f".{variant}" if variant else ""
    weights = [file for file in source.glob(f"*{infix}.safetensors") if variant or file.name.count(".") == 1]
    needs_weights = (source / "config.json").is_file()
    if needs_weights and not weights:
        pickled = [file.name for file in source.iterdir() if file.suffix in _PICKLES]
        raise ValueError(
            f"{source}: wanted {infix}.safetensors weights, found {pickled[0] if pickled else 'none'} (pickles, such as .bin, "
            "can run code and are not accepted): convert them with `model.save_pretrained(folder, safe_serialization=True)`"
        )
    for file in [*source.glob("*.json"), *source.glob("*.txt")]:
        if file.suffix == ".json":
            (_read if file.name.endswith("config.json") else _parsed)(file)
        shutil.copyfile(file, out / file.name)
    for file in weights:
        check_weights(file)
        shutil.copyfile(file, out / file.name.replace(f"{infix}.safetensors", ".safetensors"))


def _replace_vae(source: Path, pipeline: Path) -> None:
    """Replaces the VAE of a pipeline, and checks that the UNet accepts the number of latent channels."""
    shutil.rmtree(pipeline / "vae")
    _copy_model(source, pipeline / "vae", None)
    channels, wanted = _setting(pipeline / "vae", "latent_channels"), _setting(pipeline / "unet", "in_channels")
    if channels != wanted:
        raise ValueError(f"`base.vae`: its latents have {channels} channels, but the base's UNet takes {wanted}")


def _leave_out_layers(text_encoder: Path, count: int) -> None:
    """Removes the last `count` layers of a CLIPTextModel, so its output equals diffusers' `clip_skip` with the full model."""
    from safetensors.torch import load_file, save_file

    layers = _setting(text_encoder, "num_hidden_layers")
    kept = layers - count
    if kept < 1:
        raise ValueError(f"`base.clip_skip` is {count}, but the text encoder has {layers} layers")
    removed = tuple(f"encoder.layers.{layer}." for layer in range(kept, layers))
    for file in text_encoder.glob("*.safetensors"):
        tensors = {name: t for name, t in load_file(file).items() if not name.removeprefix("text_model.").startswith(removed)}
        save_file(tensors, file, metadata={"format": "pt"})
    write_json(text_encoder / "config.json", _config(text_encoder) | {"num_hidden_layers": kept})


def _setting(model: Path, name: str) -> int:
    value = _config(model).get(name)
    if not isinstance(value, int):
        raise ValueError(f"{model / 'config.json'}: got {name} = {value!r}, wanted an integer: restore the original file")
    return value


def _config(model: Path) -> dict[str, Any]:
    return _read(model / "config.json")


def _read(file: Path) -> dict[str, Any]:
    content = _parsed(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: got a JSON {type(content).__name__}, wanted a JSON object: restore the original file")
    return content


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}): restore the original file") from None
