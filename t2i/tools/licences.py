"""Licences: that of the base and that of the dataset, as identifiers of the Hub, and the one to publish a model under."""

import re
from pathlib import Path
from typing import Any, NamedTuple

_NAMES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2
    llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0
    pddl postgresql unlicense wtfpl zlib
"""
_IDENTIFIERS = frozenset(_NAMES.split())
"""The identifiers of https://huggingface.co/docs/hub/repositories-licenses, without `other` and `unknown`."""

_TEXTS = {
    r"CC BY-SA 4\.0|Attribution-ShareAlike 4\.0": "cc-by-sa-4.0",
    r"CC BY 4\.0|Attribution 4\.0 International": "cc-by-4.0",
    r"CC0 1\.0": "cc0-1.0",
    r"CreativeML Open RAIL\+\+-M": "openrail++",
    r"CreativeML Open RAIL-M": "creativeml-openrail-m",
    r"Apache License\s+Version 2\.0": "apache-2.0",
    r"MIT License": "mit",
}
"""What the text of a licence begins with, and its identifier."""


class Origin(NamedTuple):
    """What a model was made from: its base or its dataset."""

    what: str
    """`base` or `dataset`."""
    name: str
    commit: str | None
    hub: bool
    """Whether the name is an identifier on the Hub."""
    licence: str | None
    """The identifier of its licence on the Hub, or its own words; None if unknown."""
    page: str | None
    """Its page on the Hub."""


def identifier(licence: str) -> str | None:
    """Returns the identifier of a licence on the Hub, such as `cc-by-sa-4.0` for `CC BY-SA 4.0`; None if it has none."""
    name = licence.strip().lower().replace(" ", "-")
    return name if name in _IDENTIFIERS else None


def base_origin(model: Path, source: dict[str, Any], *, hub: bool) -> Origin:
    """Returns the origin of a model's base.

    Args:
        model: the folder of the model, with the licence files of the base.
        source: the content of source.json.
        hub: whether the base came from the Hub.
    """
    texts = [path.read_text(encoding="utf-8", errors="replace")[:2000] for path in sorted(model.glob("LICENSE*"))]
    found = next((name for text in texts for pattern, name in _TEXTS.items() if re.search(pattern, text, re.I)), None)
    return _origin("base", source, hub, found)


def dataset_origin(described: dict[str, Any], *, hub: bool) -> Origin:
    """Returns the origin of a dataset, from the content of dataset.json; `hub` says whether it came from the Hub."""
    return _origin("dataset", described, hub, described.get("licence"))


def _origin(what: str, facts: dict[str, Any], hub: bool, licence: str | None) -> Origin:
    name, commit = str(facts.get("source") or "not recorded"), facts.get("commit")
    if licence is None and hub:
        licence = _stated(what, name, commit)
    page = f"https://huggingface.co/{'datasets/' if what == 'dataset' else ''}{name}" if hub else None
    return Origin(what, name, commit, hub, licence, page)


def _stated(what: str, name: str, commit: str | None) -> str | None:
    """Returns the licence that the card of a repository on the Hub states; None if it states none or cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    ask = HfApi().dataset_info if what == "dataset" else HfApi().model_info
    try:
        card = ask(name, revision=commit, timeout=20).card_data
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError):
        return None
    stated = (card.get("license_name") or card.get("license")) if card else None
    return str(stated) if stated and stated not in ("other", "unknown") else None


def published_licence(origins: list[Origin], chosen: str | None) -> str:
    """Returns the identifier of the licence that a model is published under.

    It is the one that is chosen, else that of base and dataset if they have the same, else `unknown` if one of them is
    unknown, else `other`.
    """
    if chosen:
        return chosen
    named = {origin.licence and (identifier(origin.licence) or origin.licence) for origin in origins}
    if None in named:
        return "unknown"
    (only, *others) = sorted(map(str, named))
    return only if not others and only in _IDENTIFIERS else "other"


def licence_notes(origins: list[Origin], licence: str) -> list[str]:
    """Returns what a publisher should know about the licences: which are unknown, and that they differ."""
    unknown = [origin.what for origin in origins if origin.licence is None]
    notes = [f"the licence of the {what} is not known, and the card says so" for what in unknown]
    if licence == "unknown":
        notes.append(
            "the model is published with the licence `unknown`: choose one with --license, such as --license cc-by-4.0"
        )
    elif licence == "other":
        differ = " and ".join(f"that of the {origin.what} is {origin.licence}" for origin in origins)
        notes.append(f"the model is published with the licence `other`, since {differ}: choose one with --license")
    return notes
