"""Verb: bring the pretrained pipeline, and the CLIP that measures, to where the other stages find them."""

import json
import shutil
from pathlib import Path

from t2i.family import Base
from t2i.work import fresh

NOT_TAKEN = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a pipeline that neither training nor sampling here uses."""


def fetch_base(params: Base, out: Path, clip_out: Path) -> str:
    """Copies the base to `out` and the CLIP to `clip_out`; safetensors only.

    Returns:
        What was fetched, in words.

    Raises:
        ValueError: naming the file that is missing or not to be trusted, and what to do.
    """
    source, origin = _locate(params.hub or params.local, params.revision, params.variant)
    with fresh(out) as folder:
        _copy_pipeline(source, folder, params.variant)
        (folder / "source.json").write_text(json.dumps(origin, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    clip_source, clip_origin = _locate(params.clip, None, None)
    with fresh(clip_out) as folder:
        _copy_model(clip_source, folder, None)
        (folder / "source.json").write_text(json.dumps(clip_origin, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return " at ".join(str(part) for part in origin.values() if part)


def _locate(name: str, revision: str | None, variant: str | None) -> tuple[Path, dict[str, str | None]]:
    """The folder of a local checkpoint, or of a downloaded one with its commit."""
    if Path(name).is_dir():
        return Path(name), {"source": name, "commit": None}
    from huggingface_hub import snapshot_download

    weights = f"*.{variant}.safetensors" if variant else "*.safetensors"
    try:
        snapshot = snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.txt", weights, f"*/{weights}"])
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"base {name!r}, revision {revision!r}: neither a folder nor to be had from the Hub ({reason}); "
            "check the name, the network, and HF_TOKEN for a private or gated model; HF_HUB_OFFLINE=1 uses what is on disk"
        ) from None
    return Path(snapshot), {"source": name, "commit": Path(snapshot).name}


def _copy_pipeline(source: Path, out: Path, variant: str | None) -> None:
    index_file = source / "model_index.json"
    if not index_file.is_file():
        raise ValueError(f"{index_file}: missing: {source} is no pipeline in diffusers' layout")
    index = json.loads(index_file.read_text(encoding="utf-8"))
    for part, kind in index.items():
        if isinstance(kind, list) and kind[0] is not None:
            if part in NOT_TAKEN:
                index[part] = [None, None]
            else:
                _copy_model(source / part, out / part, variant)
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for licence in source.glob("LICENSE*"):
        shutil.copyfile(licence, out / licence.name)


def _copy_model(source: Path, out: Path, variant: str | None) -> None:
    """Copies configurations, vocabularies and safetensors weights, a variant's under the plain name."""
    out.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        raise ValueError(f"{source}: missing, though model_index.json names it")
    infix = f".{variant}" if variant else ""
    weights = [file for file in source.glob(f"*{infix}.safetensors") if variant or file.name.count(".") == 1]
    needs_weights = (source / "config.json").is_file()
    if needs_weights and not weights:
        pickled = [file.name for file in source.iterdir() if file.suffix in (".bin", ".ckpt", ".pt", ".pth")]
        why = f"only {pickled[0]}, a pickle, which can run code: convert it with" if pickled else "none; save it by"
        raise ValueError(
            f"{source}: wanted {infix}.safetensors weights, found {why} "
            "`model.save_pretrained(folder, safe_serialization=True)`"
        )
    for file in [*source.glob("*.json"), *source.glob("*.txt")]:
        shutil.copyfile(file, out / file.name)
    for file in weights:
        shutil.copyfile(file, out / file.name.replace(f"{infix}.safetensors", ".safetensors"))
