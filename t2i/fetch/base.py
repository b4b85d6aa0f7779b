"""Verb: bring the pretrained pipeline, and the CLIP that measures, to where the other stages find them."""

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
    """Copies the base to `out` and the CLIP to `clip_out`; safetensors only.

    Returns:
        What was fetched, in words.

    Raises:
        ValueError: naming the file that is missing or not to be trusted, and what to do.
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
    """The folder of the base, local or downloaded, and where it came from."""
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
    """The folder of a single model, local or downloaded, and where it came from."""
    if Path(named).is_dir():
        if not Path(named).resolve().is_relative_to(Path(section.local).resolve()):
            raise ValueError(f"`base.{key}` {named!r} must lie inside `base.local` {section.local!r}, which DVC watches")
        return Path(named), {"source": _named(named), "commit": None}
    name, revision = split_revision(named)
    snapshot = download(Repository(f"base.{key}", name, revision), ["*.json", "*.txt", *_WEIGHTS])
    return snapshot, {"source": name, "commit": snapshot.name}


def _named(folder: str) -> str:
    """A folder as a model card may show it: an absolute path is nobody's business."""
    return Path(folder).name if Path(folder).is_absolute() else folder


def _parts(source: Path) -> dict[str, Any]:
    """The entries of model_index.json that name a part which is used here."""
    index_file = source / "model_index.json"
    if not index_file.is_file():
        raise ValueError(
            f"{index_file}: missing: {source} is no pipeline in diffusers' layout; a checkpoint of one file becomes one by "
            "`StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)`"
        )
    index = _read(index_file)
    parts = {name: kind for name, kind in index.items() if isinstance(kind, list) and any(kind[:1]) and name not in NOT_TAKEN}
    for name in parts:
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"{index_file}: {name!r} is no name of a part: not to be trusted")
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
    """Copies configurations, vocabularies and safetensors weights, a variant's under the plain name."""
    out.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        raise ValueError(f"{source}: missing, though model_index.json names it")
    infix = f".{variant}" if variant else ""
    weights = [file for file in source.glob(f"*{infix}.safetensors") if variant or file.name.count(".") == 1]
    needs_weights = (source / "config.json").is_file()
    if needs_weights and not weights:
        pickled = [file.name for file in source.iterdir() if file.suffix in _PICKLES]
        raise ValueError(
            f"{source}: wanted {infix}.safetensors weights, found {pickled[0] if pickled else 'none'} (a pickle, such as .bin, "
            "can run code, and is not taken): convert it with `model.save_pretrained(folder, safe_serialization=True)`"
        )
    for file in [*source.glob("*.json"), *source.glob("*.txt")]:
        if file.suffix == ".json":
            (_read if file.name.endswith("config.json") else _parsed)(file)
        shutil.copyfile(file, out / file.name)
    for file in weights:
        check_weights(file)
        shutil.copyfile(file, out / file.name.replace(f"{infix}.safetensors", ".safetensors"))


def _replace_vae(source: Path, pipeline: Path) -> None:
    """Puts a VAE in the place of the pipeline's, whose UNet must take its latents."""
    shutil.rmtree(pipeline / "vae")
    _copy_model(source, pipeline / "vae", None)
    channels, wanted = _setting(pipeline / "vae", "latent_channels"), _setting(pipeline / "unet", "in_channels")
    if channels != wanted:
        raise ValueError(f"`base.vae`: its latents have {channels} channels, but the base's UNet takes {wanted}")


def _leave_out_layers(text_encoder: Path, count: int) -> None:
    """Takes the last layers out of a CLIPTextModel: its output is then what `clip_skip` takes, after the final layer norm."""
    from safetensors.torch import load_file, save_file

    layers = _setting(text_encoder, "num_hidden_layers")
    kept = layers - count
    if kept < 1:
        raise ValueError(f"`base.clip_skip` is {count}, but the text encoder has {layers} layers")
    gone = tuple(f"encoder.layers.{layer}." for layer in range(kept, layers))
    for file in text_encoder.glob("*.safetensors"):
        tensors = {name: t for name, t in load_file(file).items() if not name.removeprefix("text_model.").startswith(gone)}
        save_file(tensors, file, metadata={"format": "pt"})
    write_json(text_encoder / "config.json", _config(text_encoder) | {"num_hidden_layers": kept})


def _setting(model: Path, name: str) -> int:
    value = _config(model).get(name)
    if not isinstance(value, int):
        raise ValueError(f"{model / 'config.json'}: got {name} = {value!r}, wanted a number: put the model's own in its place")
    return value


def _config(model: Path) -> dict[str, Any]:
    return _read(model / "config.json")


def _read(file: Path) -> dict[str, Any]:
    content = _parsed(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: got JSON of another kind, wanted an object: put one of the model's in its place")
    return content


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not to be read as JSON ({error}): put a whole one in its place") from None
