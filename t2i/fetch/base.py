"""Fetches the pretrained pipeline, and the CLIP model for evaluation, to the folders that the other stages read.

Configurations come first, and the family checks them. The weights, which are gigabytes, come last.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from t2i.core.files import fresh, write_json
from t2i.core.params import ParamsError
from t2i.data.caches import ZEROS_FOR_EMPTY_PROMPT
from t2i.data.digests import sha256_of
from t2i.fetch.clip_skip import remove_skipped_layers, skip_layers
from t2i.fetch.hub import Repository, download
from t2i.fetch.model import Model, Source, name_of, source_of
from t2i.fetch.single_file import SingleFile, find_single_file, open_single_file
from t2i.fetch.watched import check_watched
from t2i.fetch.weights import Weights
from t2i.model.base import NOT_TAKEN, Base
from t2i.model.clip import check_clip
from t2i.model.family import check_base
from t2i.model.layout import parts, read_object
from t2i.model.vae import read_scaling


class Configured(NamedTuple):
    """A base whose configurations are written and checked."""

    source: Source
    """Where the configurations come from."""
    models: dict[str, Model]
    """The models whose weights are copied, by the name of the part."""
    single: SingleFile | None
    """The file that the other weights come from; None if `models` has all."""


def fetch_base(section: Base, out: Path, clip_out: Path) -> str:
    """Copies the base to `out` and the CLIP model to `clip_out`. Only safetensors weights are accepted.

    Returns:
        The source of the base and its commit, as text; or what the single file is.

    Raises:
        ValueError: if the family cannot train the base, or a file is missing, damaged or unsafe; says the file and the remedy.
    """
    with fresh(out) as folder, fresh(clip_out) as clip_folder:
        base = configure(section, folder)
        clip = configure_clip(section, clip_folder)
        picked = [*_weights(section, base.models), ("clip", clip, clip.weights(None))]
        for name, model, weights in picked:  # all are there: copies them
            model.copy_weights(weights, clip_folder if name == "clip" else folder / name)
        if base.single:
            base.single.write(folder, base.single.layout.prefixes.keys() - base.models.keys())
        if section.clip_skip:
            remove_skipped_layers(folder / "text_encoder")
        _check(section, folder)
        _check_clip(section, clip_folder)
        origin = _origin(section, base)
        write_json(folder / "source.json", origin)
        write_json(clip_folder / "source.json", clip.source.origin)
    facts = " at ".join(str(part) for part in origin.values() if part)
    return f"{base.single.path}, {base.single.layout.title}, configured as {base.source.name}" if base.single else facts


def configure(section: Base, folder: Path) -> Configured:
    """Writes the configurations of the base, with the changes that the section asks for, and checks them.

    Raises:
        ValueError: if the family cannot train the base; says why.
    """
    base, single = _pipeline(section)
    if single:
        single.check_kind(parts(base.folder), base.name)
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
        skip_layers(folder / "text_encoder", section.clip_skip)
    _check(section, folder)
    with_weights = {name: model for name, model in models.items() if (model.folder / "config.json").is_file()}
    if single is None:
        return Configured(base, with_weights, None)
    single.check_fits(folder, [name for name in single.layout.prefixes if models[name].place != "."], base.name)
    if single.write_scheduler(folder):
        _check(section, folder)
    return Configured(base, {name: model for name, model in with_weights.items() if model.place == "."}, single)


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


def check_origin(section: Base, fetched: Path, *, deep: bool = False) -> None:
    """Checks that the base that was fetched is the one that the section `base` names, then the CLIP model beside it.

    Args:
        section: the section.
        fetched: the folder of the base.
        deep: whether to also compare the sha256 of a single file.

    Raises:
        ValueError: if another source, variant, VAE, `clip_skip` or CLIP was fetched, or the folder `base.local` has changed.
    """
    if (fetched / "source.json").is_file():  # else `fetch base` did not write it
        _check_source(section, fetched, deep=deep)
    clip = fetched.with_name(f"{fetched.name}-clip")
    if (clip / "source.json").is_file():
        found, asked = read_object(clip / "source.json").get("source"), name_of(section.clip.partition("@")[0])
        if found != asked:
            raise ValueError(f"{clip}: its source is {found}, but `base.clip` is {asked}; run `t2i fetch base`")


def _check_source(section: Base, fetched: Path, *, deep: bool) -> None:
    """Checks that a base was fetched from the source that the section names, with the same changes."""
    found = read_object(fetched / "source.json")
    single = None if section.hub else find_single_file(Path(section.local))
    wanted = {"source": section.hub or name_of(str(single or section.local))} | _changes(section)
    if section.hub and re.fullmatch(r"[0-9a-f]{40}", section.revision or ""):
        wanted["commit"] = str(section.revision)
    if single:
        wanted["config_source"] = name_of((section.config or "").partition("@")[0])
        wanted |= {"sha256": sha256_of(single)} if deep else {}
    for name in ("source", "commit", "sha256", "config_source", "variant", "vae_source", "clip_skip", "empty_prompt"):
        if (name not in ("commit", "sha256") or name in wanted) and found.get(name) != wanted.get(name):
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


def _origin(section: Base, base: Configured) -> dict[str, str | None]:
    """Returns what source.json says: no absolute path, which is private."""
    origin = base.source.origin
    if base.single:
        config = {f"config_{key}": value for key, value in origin.items()}
        origin = {"source": name_of(str(base.single.path)), "sha256": sha256_of(base.single.path), **config}
    origin |= _changes(section)
    return origin if section.vae is None else origin | {"vae_commit": base.models["vae"].source.origin["commit"]}


def _pipeline(section: Base) -> tuple[Source, SingleFile | None]:
    """Returns the base with its configurations downloaded, and the single file that its weights come from, if any."""
    if section.hub is None:
        check_watched(Path(section.local), "base.local")
        if path := find_single_file(Path(section.local)):
            single = open_single_file(path, section)
            return source_of(section, "config", str(section.config)), single
        return Source(Path(section.local), name_of(section.local), None), None
    asked = Repository("base.hub", section.hub, section.revision)
    snapshot = download(asked, ["model_index.json"])
    base = Source(snapshot, section.hub, asked._replace(revision=snapshot.name))
    base.fetch([f"{name}/{pattern}" for name in parts(snapshot) for pattern in ("*.json", "*.txt")])
    return base, None


def _check(section: Base, folder: Path) -> None:
    try:
        check_base(section.family, folder)
    except ParamsError:
        raise
    except ValueError as error:
        single = section.hub is None and find_single_file(Path(section.local))
        name = f"`base.config` {section.config}" if single else str(section.hub or section.local)
        name += f" with `base.vae` {section.vae}" if section.vae else ""
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
