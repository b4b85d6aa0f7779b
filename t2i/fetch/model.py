"""Models: where the files of a pretrained model are, in a folder or on the Hub, and how they are copied."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from t2i.fetch.hub import Repository, download, files_of, split_revision
from t2i.fetch.watched import check_watched
from t2i.fetch.weights import Weights, check_weights, pick_weights
from t2i.model.base import Base
from t2i.model.layout import read_json, read_object


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

    def copy_configuration(self, out: Path) -> None:
        """Copies its configurations and vocabularies; an index of weights is written with the weights."""
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: missing, though model_index.json names it")
        out.mkdir(parents=True, exist_ok=True)
        for file in [*self.folder.glob("*.json"), *self.folder.glob("*.txt")]:
            if ".safetensors." in file.name:
                continue
            if file.suffix == ".json":
                (read_object if file.name.endswith("config.json") else read_json)(file)
            shutil.copyfile(file, out / file.name)

    def copy_weights(self, weights: Weights, out: Path) -> None:
        """Downloads, checks and copies its weights."""
        self.source.fetch([(Path(self.place) / file).as_posix() for file in weights.names.values()])
        for name, file in weights.names.items():
            check_weights(self.folder / file)
            shutil.copyfile(self.folder / file, out / name)
        weights.write_index(self.folder, out)


def source_of(section: Base, key: str, named: str) -> Source:
    """Returns the source of a single model, with its configuration downloaded."""
    if Path(named).is_dir():
        if not Path(named).resolve().is_relative_to(Path(section.local).resolve()):
            together = (
                "" if Path(section.local).is_dir() else ": put both into one folder, and name that folder in `base.local`"
            )
            raise ValueError(
                f"`base.{key}` {named!r} must be inside `base.local` {section.local!r}, so that DVC tracks it{together}"
            )
        check_watched(Path(section.local), "base.local")
        return Source(Path(named), name_of(named), None)
    name, revision = split_revision(named)
    asked = Repository(f"base.{key}", name, revision)
    snapshot = download(asked, ["*.json", "*.txt"])
    return Source(snapshot, name, asked._replace(revision=snapshot.name))


def name_of(folder: str) -> str:
    """Returns a folder's name for the model card, without the absolute path, which is private."""
    return Path(folder).name if Path(folder).is_absolute() else folder
