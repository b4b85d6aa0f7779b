"""Fetches the pretrained pipeline, and the CLIP model for evaluation, to the folders that the other stages read.

Configurations come first, and the family checks them. The weights, which are gigabytes, come last.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from t2i.core.files import fresh, write_json
from t2i.core.params import ParamsError
from t2i.fetch.hub import Repository, download, files_of, split_revision
from t2i.fetch.watched import check_watched
from t2i.fetch.weights import Weights, check_weights, pick_weights
from t2i.model.base import NOT_TAKEN, Base
from t2i.model.family import check_base
from t2i.model.layout import parts, read_json, read_object, setting


@dataclass(frozen=True)
class Source:
    """A pipeline or a single model: a local folder, or a snapshot in the cache of the Hub's client."""

    folder: Path
    name: str
    """The folder or the Hub id, as the model card shows it."""
    repository: Repository | None
    """The repository at its commit; None for a local folder."""

    def fetch(self, patterns: list[str]) -> None:
        """Downloads the files that match the patterns, if the source is on the Hub."""
        if self.repository:
            download(self.repository, patterns)

    @property
    def origin(self) -> dict[str, str | None]:
        """Name and commit."""
        return {"source": self.name, "commit": self.repository.revision if self.repository else None}

    @cached_property
    def files(self) -> list[str]:
        """The paths of all files, also of those that are not downloaded yet."""
        listed = files_of(self.repository) if self.repository else None
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return [path.relative_to(self.folder).as_posix() for path in found] if listed is None else listed


@dataclass(frozen=True)
class Model:
    """A model of the pipeline: the place of its files."""

    source: Source
    place: str
    """Its folder in the source; `.` if the source is a single model."""

    @property
    def folder(self) -> Path:
        """Folder of its configuration."""
        return self.source.folder / self.place

    def weights(self, variant: str | None) -> Weights:
        """Returns the names of its weight files."""
        here = [Path(file).name for file in self.source.files if Path(file).parent == Path(self.place)]
        return pick_weights(self.folder, here, variant)


def fetch_base(section: Base, out: Path, clip_out: Path) -> str:
    """Copies the base to `out` and the CLIP model to `clip_out`. Only safetensors weights are accepted.

    Returns:
        The source of the base and its commit, as text.

    Raises:
        ValueError: if the family cannot train the base, or a file is missing, damaged or unsafe; says the file and the remedy.
    """
    with fresh(out) as folder, fresh(clip_out) as clip_folder:
        base, models = configure(section, folder)
        clip = Model(_source(section, "clip", section.clip), ".")
        _copy_configuration(clip, clip_folder)
        for name, model, weights in [*_weights(section, models), ("clip", clip, clip.weights(None))]:  # picks all, then copies
            _copy_weights(model, weights, clip_folder if name == "clip" else folder / name)
        if section.clip_skip:
            _remove_skipped_layers(folder / "text_encoder")
        _check(section, folder)
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
    if section.vae is not None:
        models["vae"] = Model(_source(section, "vae", section.vae), ".")
    for name, model in models.items():
        _copy_configuration(model, folder / name)
    write_json(folder / "model_index.json", index)
    for licence in filter(Path.is_file, base.folder.glob("LICENSE*")):
        shutil.copyfile(licence, folder / (licence.name if licence.suffix in (".md", ".txt") else f"{licence.name}.txt"))
    if section.clip_skip:
        _skip_layers(folder / "text_encoder", section.clip_skip)
    _check(section, folder)
    return base, {name: model for name, model in models.items() if (model.folder / "config.json").is_file()}


def check_origin(section: Base, fetched: Path) -> None:
    """Checks that the base that was fetched is the one that the section `base` names.

    Raises:
        ValueError: if another source, variant, VAE or `clip_skip` was fetched, or the folder `base.local` has changed.
    """
    if not (fetched / "source.json").is_file():
        return  # `fetch base` did not write it
    found = read_object(fetched / "source.json")
    wanted = {"source": section.hub or _named(section.local)} | _changes(section)
    if section.hub and re.fullmatch(r"[0-9a-f]{40}", section.revision or ""):
        wanted["commit"] = str(section.revision)
    for name in ("source", "commit", "variant", "vae_source", "clip_skip"):
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
    changes["vae_source"] = None if section.vae is None else _named(section.vae.partition("@")[0])
    return {name: value for name, value in changes.items() if value is not None}


def _origin(section: Base, base: Source, models: dict[str, Model]) -> dict[str, str | None]:
    origin = base.origin | _changes(section)
    return origin if section.vae is None else origin | {"vae_commit": models["vae"].source.origin["commit"]}


def _pipeline(section: Base) -> Source:
    """Returns the base with its configurations downloaded."""
    if section.hub is None:
        check_watched(Path(section.local), "base.local")
        return Source(Path(section.local), _named(section.local), None)
    asked = Repository("base.hub", section.hub, section.revision)
    snapshot = download(asked, ["model_index.json"])
    base = Source(snapshot, section.hub, asked._replace(revision=snapshot.name))
    base.fetch([f"{name}/{pattern}" for name in parts(snapshot) for pattern in ("*.json", "*.txt")])
    return base


def _source(section: Base, key: str, named: str) -> Source:
    """Returns the source of a single model, with its configuration downloaded."""
    if Path(named).is_dir():
        if not Path(named).resolve().is_relative_to(Path(section.local).resolve()):
            raise ValueError(f"`base.{key}` {named!r} must be inside `base.local` {section.local!r}, so that DVC tracks it")
        check_watched(Path(section.local), "base.local")
        return Source(Path(named), _named(named), None)
    name, revision = split_revision(named)
    asked = Repository(f"base.{key}", name, revision)
    snapshot = download(asked, ["*.json", "*.txt"])
    return Source(snapshot, name, asked._replace(revision=snapshot.name))


def _named(folder: str) -> str:
    """Returns a folder's name for the model card, without the absolute path, which is private."""
    return Path(folder).name if Path(folder).is_absolute() else folder


def _check(section: Base, folder: Path) -> None:
    try:
        check_base(section.family, folder)
    except ParamsError:
        raise
    except ValueError as error:
        name = f"{section.hub or section.local}{f' with `base.vae` {section.vae}' if section.vae else ''}"
        raise ValueError(f"{name}: {str(error).replace(f'{folder}/', '')}") from None


def _copy_configuration(model: Model, out: Path) -> None:
    """Copies the configurations and vocabularies of a part; an index of weights is written with the weights."""
    if not model.folder.is_dir():
        raise ValueError(f"{model.folder}: missing, though model_index.json names it")
    out.mkdir(parents=True, exist_ok=True)
    for file in [*model.folder.glob("*.json"), *model.folder.glob("*.txt")]:
        if ".safetensors." in file.name:
            continue
        if file.suffix == ".json":
            (read_object if file.name.endswith("config.json") else read_json)(file)
        shutil.copyfile(file, out / file.name)


def _weights(section: Base, models: dict[str, Model]) -> list[tuple[str, Model, Weights]]:
    """Returns the weights of all models; a VAE of its own has no variant."""
    return [(name, model, model.weights(None if model.place == "." else section.variant)) for name, model in models.items()]


def _copy_weights(model: Model, weights: Weights, out: Path) -> None:
    model.source.fetch([(Path(model.place) / file).as_posix() for file in weights.names.values()])
    for name, file in weights.names.items():
        check_weights(model.folder / file)
        shutil.copyfile(model.folder / file, out / name)
    weights.write_index(model.folder, out)


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
