"""Fetches the pretrained pipeline, and the CLIP model for evaluation, to the folders that the other stages read.

Configurations come first, and the family checks them. The weights, which are gigabytes, come last.
"""

import re
import shutil
import tempfile
from pathlib import Path

from t2i.core.files import fresh, write_json
from t2i.core.params import ParamsError
from t2i.data.caches import ZEROS_FOR_EMPTY_PROMPT
from t2i.fetch.hub import Repository, download
from t2i.fetch.model import Model, Source, name_of, source_of
from t2i.fetch.watched import check_watched
from t2i.fetch.weights import Weights
from t2i.model.base import NOT_TAKEN, Base
from t2i.model.clip import check_clip
from t2i.model.family import check_base
from t2i.model.layout import parts, read_object, setting
from t2i.model.vae import read_scaling


def fetch_base(section: Base, out: Path, clip_out: Path) -> str:
    """Copies the base to `out` and the CLIP model to `clip_out`. Only safetensors weights are accepted.

    Returns:
        The source of the base and its commit, as text.

    Raises:
        ValueError: if the family cannot train the base, or a file is missing, damaged or unsafe; says the file and the remedy.
    """
    with fresh(out) as folder, fresh(clip_out) as clip_folder:
        base, models = configure(section, folder)
        clip = configure_clip(section, clip_folder)
        for name, model, weights in [*_weights(section, models), ("clip", clip, clip.weights(None))]:  # picks all, then copies
            model.copy_weights(weights, clip_folder if name == "clip" else folder / name)
        if section.clip_skip:
            _remove_skipped_layers(folder / "text_encoder")
        _check(section, folder)
        _check_clip(section, clip_folder)
        origin = _origin(section, base, models)
        write_json(folder / "source.json", origin)
        write_json(clip_folder / "source.json", clip.source.origin)
    return " at ".join(str(part) for part in origin.values() if part)


def configure(section: Base, folder: Path) -> tuple[Source, dict[str, Model]]:
    """Writes the configurations of the base, with the changes that the section asks for, and checks them.

    Returns:
        The source of the pipeline, and the models that have weights, by the name of the part.

    Raises:
        ValueError: if the family cannot train the base; says why.
    """
    base = _pipeline(section)
    models = {name: Model(base, name) for name in parts(base.folder)}
    index = read_object(base.folder / "model_index.json")
    index |= {name: [None, None] for name in NOT_TAKEN if name in index}
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    if section.empty_prompt != "auto":
        index[ZEROS_FOR_EMPTY_PROMPT] = section.empty_prompt == "zeros"
    if section.vae is not None:
        models["vae"] = Model(source_of(section, "vae", section.vae), ".")
        _check_same_latents(base.folder / "vae", models["vae"].folder, section.vae)
    for name, model in models.items():
        model.copy_configuration(folder / name)
    write_json(folder / "model_index.json", index)
    for licence in filter(Path.is_file, base.folder.glob("LICENSE*")):
        shutil.copyfile(licence, folder / (licence.name if licence.suffix in (".md", ".txt") else f"{licence.name}.txt"))
    if section.clip_skip:
        if "text_encoder_2" in models:
            raise ValueError(
                f"`base.clip_skip` is {section.clip_skip}, but this pipeline has two text encoders, which are always read at "
                "the last layer but one: set it to 0"
            )
        _skip_layers(folder / "text_encoder", section.clip_skip)
    _check(section, folder)
    return base, {name: model for name, model in models.items() if (model.folder / "config.json").is_file()}


def _check_same_latents(own: Path, another: Path, name: str) -> None:
    """Raises a ValueError if another VAE scales its latents differently: the UNet knows the latents of its own."""
    wanted, got = read_scaling(own), read_scaling(another)
    if got[:2] != wanted[:2]:
        raise ValueError(
            f"`base.vae` {name}: its scaling_factor and shift_factor are {got[0]} and {got[1]}, but those of the base's own "
            f"VAE are {wanted[0]} and {wanted[1]}: it is for other models; set `base.vae` to null, or to one made for this base"
        )


def configure_clip(section: Base, folder: Path) -> Model:
    """Writes the configurations of the CLIP model for the metrics, and checks them; returns the model.

    Raises:
        ValueError: if it is not a whole CLIP.
    """
    clip = Model(source_of(section, "clip", section.clip), ".")
    clip.copy_configuration(folder)
    _check_clip(section, folder)
    return clip


def check_origin(section: Base, fetched: Path) -> None:
    """Checks that the base that was fetched is the one that the section `base` names, then the CLIP model beside it.

    Raises:
        ValueError: if another source, variant, VAE, `clip_skip` or CLIP was fetched, or the folder `base.local` has changed.
    """
    if (fetched / "source.json").is_file():  # else `fetch base` did not write it
        _check_source(section, fetched)
    clip = fetched.with_name(f"{fetched.name}-clip")
    if (clip / "source.json").is_file():
        found, asked = read_object(clip / "source.json").get("source"), name_of(section.clip.partition("@")[0])
        if found != asked:
            raise ValueError(f"{clip}: its source is {found}, but `base.clip` is {asked}; run `t2i fetch base`")


def _check_source(section: Base, fetched: Path) -> None:
    """Checks that a base was fetched from the source that the section names, with the same changes."""
    found = read_object(fetched / "source.json")
    wanted = {"source": section.hub or name_of(section.local)} | _changes(section)
    if section.hub and re.fullmatch(r"[0-9a-f]{40}", section.revision or ""):
        wanted["commit"] = str(section.revision)
    for name in ("source", "commit", "variant", "vae_source", "clip_skip", "empty_prompt"):
        if (name != "commit" or name in wanted) and found.get(name) != wanted.get(name):
            raise ValueError(
                f"{fetched}: its {name} is {found.get(name)}, but the section `base` asks for {wanted.get(name)}; "
                "run `t2i fetch base`"
            )
    if section.hub is None:
        with tempfile.TemporaryDirectory() as folder:
            configure(section, Path(folder))
            for file in sorted(Path(folder).rglob("*.json")):
                copy = fetched / file.relative_to(folder)
                if not copy.is_file() or copy.read_bytes() != file.read_bytes():
                    raise ValueError(f"{copy}: differs from that of {section.local}; run `t2i fetch base`")


def _changes(section: Base) -> dict[str, str]:
    """Returns what the section changes in the base, for source.json."""
    changes = {"variant": section.variant, "clip_skip": str(section.clip_skip) if section.clip_skip else None}
    changes["empty_prompt"] = None if section.empty_prompt == "auto" else section.empty_prompt
    changes["vae_source"] = None if section.vae is None else name_of(section.vae.partition("@")[0])
    return {name: value for name, value in changes.items() if value is not None}


def _origin(section: Base, base: Source, models: dict[str, Model]) -> dict[str, str | None]:
    origin = base.origin | _changes(section)
    return origin if section.vae is None else origin | {"vae_commit": models["vae"].source.origin["commit"]}


def _pipeline(section: Base) -> Source:
    """Returns the base with its configurations downloaded."""
    if section.hub is None:
        check_watched(Path(section.local), "base.local")
        return Source(Path(section.local), name_of(section.local), None)
    asked = Repository("base.hub", section.hub, section.revision)
    snapshot = download(asked, ["model_index.json"])
    base = Source(snapshot, section.hub, asked._replace(revision=snapshot.name))
    base.fetch([f"{name}/{pattern}" for name in parts(snapshot) for pattern in ("*.json", "*.txt")])
    return base


def _check(section: Base, folder: Path) -> None:
    try:
        check_base(section.family, folder)
    except ParamsError:
        raise
    except ValueError as error:
        name = f"{section.hub or section.local}{f' with `base.vae` {section.vae}' if section.vae else ''}"
        raise ValueError(f"{name}: {_without(folder, error)}") from None


def _check_clip(section: Base, folder: Path) -> None:
    try:
        check_clip(folder)
    except ValueError as error:
        raise ValueError(f"`base.clip` {section.clip}: {_without(folder, error)}") from None


def _without(folder: Path, error: ValueError) -> str:
    """Returns a message without the temporary folder."""
    return re.sub(rf"{re.escape(str(folder))}(/|: )", "", str(error))


def _weights(section: Base, models: dict[str, Model]) -> list[tuple[str, Model, Weights]]:
    """Returns the weights of all models; a VAE of its own has no variant."""
    return [(name, model, model.weights(None if model.place == "." else section.variant)) for name, model in models.items()]


def _skip_layers(text_encoder: Path, count: int) -> None:
    """Removes the last `count` layers from a configuration, so that the output equals diffusers' `clip_skip`."""
    layers = setting(text_encoder, "num_hidden_layers")
    if count >= layers:
        raise ValueError(f"`base.clip_skip` is {count}, but the text encoder has {layers} layers")
    write_json(text_encoder / "config.json", read_object(text_encoder / "config.json") | {"num_hidden_layers": layers - count})


def _remove_skipped_layers(text_encoder: Path) -> None:
    """Removes the weights of the layers that the configuration does not have."""
    from safetensors.torch import load_file, save_file

    kept = setting(text_encoder, "num_hidden_layers")

    def has_layer(name: str) -> bool:
        layer = re.match(r"(?:text_model\.)?encoder\.layers\.(\d+)\.", name)
        return layer is None or int(layer[1]) < kept

    for file in text_encoder.glob("*.safetensors"):
        tensors = {name: tensor for name, tensor in load_file(file).items() if has_layer(name)}
        save_file(tensors, file, metadata={"format": "pt"})
