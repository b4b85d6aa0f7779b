"""Differences: which parameters of a run are not those of the preset that it began with, or of the last commit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t2i.tools.preset import presets, shown, values_applied, values_of

_NEAR = 2 / 3
"""Least fraction of a preset's values that a run has, for the preset to be named as the nearest."""
_LONGEST = 160
"""Most characters of a value that are shown; params.yaml has all of it."""


class Difference(NamedTuple):
    """A parameter whose value differs."""

    place: str
    before: str
    now: str


class Differences(NamedTuple):
    """The parameters that differ, and from what."""

    reference: str
    """What the run is compared with, and why, in Markdown; empty if there is nothing to compare it with."""
    rows: list[Difference]


def differences(now: Mapping[str, Any], committed: Mapping[str, Any], folder: Path) -> Differences:
    """Compares the parameters of a run with those that it began with.

    These are the values of the preset that was applied, if presets/.undo.yaml records one, else of the preset that has most
    values in common with the run, if they are two thirds or more. Parameters that the preset does not set, or all of them if
    there is no such preset, are compared with the last commit.

    Args:
        now: the value of each parameter of the run, by path.
        committed: those in the last commit; empty if there is none.
        folder: the folder of the presets.
    """
    sets = {name: values_of(name, folder) for name in presets(folder)}
    name, why = _preset(now, committed, sets, values_applied(folder))
    reference = {**committed, **(sets[name] if name else {})}
    rows = [
        Difference(place, _shown(reference[place]) if place in reference else "", _shown(value))
        for place, value in now.items()
        if (reference[place] != value if place in reference else committed)
    ]
    if not name:
        return Differences("`params.yaml` of the last commit" if committed else "", rows)
    others = ", and what it does not set with `params.yaml` of the last commit" if committed else ""
    return Differences(f"the preset `{name}` ({why}){others}", rows)


def _preset(
    now: Mapping[str, Any], committed: Mapping[str, Any], sets: Mapping[str, Mapping[str, Any]], applied: Mapping[str, Any]
) -> tuple[str, str]:
    """Returns the name of the preset to compare with, and the reason; two empty texts if there is none."""
    fitting = [name for name in sets if all(sets[name].get(place, value) == value for place, value in applied.items())]
    if applied and fitting:
        return max(fitting, key=lambda name: _share(sets[name], {**committed, **applied})), "recorded as applied"
    name = max(sets, key=lambda name: _share(sets[name], now), default="")
    if name and (share := _share(sets[name], now)) >= _NEAR:
        count = len(sets[name])
        return name, f"the nearest: {round(share * count)} of its {count} values are those of this run"
    return "", ""


def _share(values: Mapping[str, Any], others: Mapping[str, Any]) -> float:
    """Returns the fraction of values that others have too."""
    equal = [place for place, value in values.items() if place in others and others[place] == value]
    return len(equal) / max(1, len(values))


def _shown(value: Any) -> str:
    """Returns a value in full, unless it is long."""
    text = f"[{', '.join(map(shown, value))}]" if isinstance(value, list) else shown(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
