"""Source `folder`: a folder of images, with captions in metadata files or in files beside the images."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from t2i.core.params import Section
from t2i.fetch.metadata import Metadata
from t2i.fetch.sidecars import Kohya, Sidecar
from t2i.fetch.source import Dataset


class Source(Section):
    """`fetch.source` with `name: folder`; the folder is `fetch.local`, so that DVC tracks its changes."""

    reads_local: ClassVar[bool] = True
    name: Literal["folder"]
    captions: Annotated[Metadata | Sidecar | Kohya, Field(discriminator="name")]
    """Where the captions are: `{name: metadata, column: text}`, `{name: sidecar, extensions: [txt]}`, or
    `{name: kohya, extensions: [txt]}`."""

    @model_validator(mode="before")
    @classmethod
    def _not_the_old_form(cls, section: object) -> object:
        if isinstance(section, dict) and "caption_column" in section:
            column = repr(section["caption_column"])[:80]
            raise ValueError(f"instead of `caption_column: {column}`, write `captions: {{name: metadata, column: {column}}}`")
        return section


def open_source(section: Source, local: Path) -> Dataset:
    """Returns the images of a folder with their captions.

    Args:
        section: the section `fetch.source`.
        local: the folder.

    Raises:
        ValueError: if the folder has no captions of that kind.
    """
    return section.captions(local)
