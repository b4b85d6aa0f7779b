"""Publishes a finished run: a folder with the model, its card, pictures, parameters, figures and digests."""

import shutil
import sys
from pathlib import Path

from PIL import Image

from t2i.core.files import fresh, in_bytes, size_of, work_root, write_json, write_text
from t2i.evaluate.grid import draw_grid
from t2i.evaluate.heldout import DataFolders, captions, some_keys
from t2i.model.layout import read_json, read_object
from t2i.tools.facts import digests, facts
from t2i.tools.finished import finished_run
from t2i.tools.licences import licence_notes
from t2i.tools.model_card import Card, Sample, render_card
from t2i.tools.private import check_private, without_stated_paths
from t2i.tools.sections import Sections, load_sections
from t2i.tools.upload import open_target, upload

_DATA, _PARAMS, _PRESETS = Path("data"), Path("params.yaml"), Path("presets")
_DIGESTS = "digests.json"
_CARD = shutil.ignore_patterns("README.md", "pictures")
_SHOWN = 4
"""Number of single pictures in the folder."""


def publish_to_folder(out: Path, licence: str | None) -> str:
    """Writes a folder to publish; what an earlier call wrote there is replaced. Prints notes, such as on unknown licences.

    Args:
        out: the folder.
        licence: the identifier of the licence to publish under; None: that of base and dataset, if they have the same.

    Returns:
        Where it was published, for a message.

    Raises:
        ValueError: if the run is not finished or out of date, `out` has other files, or a path of this machine or a token would
            be published.
        ParamsError: if params.yaml is not valid.
    """
    _check_replaceable(out)
    _write(out, "path/to/this/folder", licence)
    return str(out)


def publish_to_hub(name: str, licence: str | None, *, private: bool) -> str:
    """Uploads the same folder to a model repository on the Hub. Nothing is uploaded before everything is checked.

    Args:
        name: `owner/name`.
        licence: as for `publish_to_folder`.
        private: whether to create the repository as a private one. An existing one stays as it is.

    Returns:
        The URL of the commit, and who can see it, for a message.

    Raises:
        ValueError: as `publish_to_folder`; or if the repository may not be written, or the upload fails.
        ParamsError: if params.yaml is not valid.
    """
    target, staged = open_target(name, private=private), work_root() / "publish"
    try:
        card = _write(staged, name, licence)
        print(f"uploading {in_bytes(size_of(staged))} to {name}", file=sys.stderr)
        done = upload(staged, target, card.title)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return f"{done.url} ({'private' if done.private else 'public'})"


def _write(out: Path, place: str, licence: str | None) -> Card:
    """Writes the folder and prints the notes; `place` says where a user will load the model from."""
    sections, model = load_sections(_PARAMS), _DATA / "model"
    with finished_run() as stages, fresh(out, size_of(model)) as folder:
        _copy_model(model, folder)
        samples = _draw(sections, folder / "pictures")
        (folder / "reports").mkdir()
        for name in ("metrics.json", "intervals.json"):
            shutil.copyfile(_DATA / "reports/evaluate" / name, folder / "reports" / name)
        card = facts(_PARAMS, _DATA, _PRESETS, samples, place, licence)
        write_text(folder / "params.yaml", card.parameters)
        write_text(folder / "README.md", render_card(card))
        write_json(folder / _DIGESTS, digests(stages, card, _DATA, folder, sections.runtime.storage()))
        check_private(folder)
    for note in _notes(card):
        print(f"note: {note}", file=sys.stderr)
    return card


def _check_replaceable(out: Path) -> None:
    """Raises a ValueError if a folder has something that an earlier publication did not write: it would be deleted."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    remedy = "choose a folder that does not exist yet"
    if not (out / _DIGESTS).is_file():
        raise ValueError(f"{out}: exists, and is not a folder that this command wrote: {remedy}")
    wrote = {_DIGESTS, *read_object(out / _DIGESTS).get("files", {})}
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if others := sorted(found - wrote):
        raise ValueError(f"{out / others[0]}: would be deleted, and this command did not write it: move it, or {remedy}")


def _copy_model(model: Path, out: Path) -> None:
    """Copies a model without its card; files that DVC has linked are read-only, and their copies are not."""
    shutil.copytree(model, out, copy_function=shutil.copyfile, dirs_exist_ok=True, ignore=_CARD)
    for file in out.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        if (public := without_stated_paths(text)) != text:
            write_text(file, public)


def _draw(sections: Sections, out: Path) -> list[Sample]:
    """Writes grid.png, the base's samples beside the model's, and some samples of the model alone; no image of the dataset.

    Samples that nearly equal a training image are left out. The files have no metadata.
    """
    folders = DataFolders(_DATA / "raw", _DATA / "latents", _DATA / "embeds", sections.runtime.storage())
    copied = {row["key"] for row in read_json(_DATA / "reports/evaluate/nearest.json") if row["copied"]}
    keys = [
        key for key in some_keys(folders, "heldout", sections.evaluate.prompts, sections.evaluate.seed) if key not in copied
    ]
    captions_of = captions(folders)
    out.mkdir()
    rows = [
        (captions_of[key][0], [_opened(_DATA / "samples" / which / f"{key}.png") for which in ("base", "model")])
        for key in keys[: max(sections.report.grid_prompts, _SHOWN)]
    ]
    if rows:
        draw_grid(rows[: sections.report.grid_prompts], ("base", "fine-tuned"), out / "grid.png")
    for number, (_, (_, image)) in enumerate(rows[:_SHOWN]):
        image.save(out / f"sample-{number + 1}.png", "PNG")
    return [Sample(prompt, f"pictures/sample-{number + 1}.png") for number, (prompt, _) in enumerate(rows[:_SHOWN])]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    pixels.info = {}
    return pixels


def _notes(card: Card) -> list[str]:
    notes = licence_notes([card.base, card.dataset], card.licence)
    if card.verdict.word != "use":
        notes.append(f"the card says: {card.verdict.title}")
    if card.revision.commit is None:
        notes.append("this is no git checkout with a commit, so the card cannot name the code")
    elif card.revision.changed:
        changed = ", ".join(card.revision.changed[:3]) + (", ..." if card.revision.changed[3:] else "")
        notes.append(f"uncommitted changes ({changed}), and the card says so: commit them and publish again")
    if card.redacted:
        notes.append("params.yaml has absolute paths: the published copy has their last names only")
    return notes
