"""Makes ten runs of the embedded base, good and bad ones, and keeps their metrics: the report's verdicts are tested on them.

npm pack emoji-datasource-google@15.1.2 && tar xzf emoji-datasource-google-15.1.2.tgz
python -m benchmarks.verdicts package/img/google/64

Each run has a dataset, changes of params.yaml, and the verdict that was written down here before the run was made. One of them
was wrong: `all-weights` was expected to need a look first, but its pictures are smears, and few show what their prompts say.

Writes the metrics of each run to tests/evaluate/verdicts/NAME.json; a run whose file is there is not made again. Takes half an
hour on two cores.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from ruamel.yaml import YAML

from benchmarks.measured import ROOT, measured

OUT = ROOT / "tests/evaluate/verdicts"


class Run(NamedTuple):
    """A run, and what the report should say about it."""

    dataset: str
    verdict: str
    train: dict[str, Any]


ALL: dict[str, Any] = {"trainable": ""}
RUNS = {
    "default": Run("night", "use", {}),
    "shorter": Run("night", "use", {"steps": 400}),
    "too-short": Run("night", "do not use", {"steps": 60}),
    "untrained": Run("night", "do not use", {"steps": 2, "warmup_steps": 0, "learning_rate": 1e-9}),
    "rate-times-ten": Run("night", "do not use", {"steps": 400, "learning_rate": 6e-2}),
    "all-weights": Run("night", "do not use", ALL | {"steps": 400, "learning_rate": 5e-4}),
    "same-style": Run("plain", "do not use", {"steps": 200}),
    "by-heart": Run("twenty", "do not use", ALL | {"steps": 500, "batch_size": 8, "learning_rate": 1e-3}),
    "foreign": Run("noto", "do not use", {"steps": 400}),
    "foreign-all-weights": Run("noto", "do not use", ALL | {"steps": 500, "learning_rate": 5e-5}),
}


def main(
    noto: Annotated[Path, typer.Argument(help="Folder of Noto's emoji, one PNG per code.")],
    work: Annotated[Path, typer.Option(help="Folder for the datasets, caches and models.")] = Path("build/verdicts"),
) -> None:
    """Makes the runs that are not there yet."""
    OUT.mkdir(exist_ok=True)
    for name, run in RUNS.items():
        folder = work.absolute() / run.dataset
        if (OUT / f"{name}.json").exists():
            continue
        if not (folder / "data/reports/evaluate-base/metrics.json").exists():
            _prepare(run.dataset, folder, noto.absolute())
        _params(run, folder)
        measured(["-m", "stages.train"], folder)
        measured(["-m", "stages.evaluate", "model"], folder)
        stages = ("evaluate/metrics", "evaluate/intervals", "encode-images/metrics", "encode-captions/metrics")
        found = {stage: json.loads((folder / f"data/reports/{stage}.json").read_text(encoding="utf-8")) for stage in stages}
        (OUT / f"{name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _prepare(dataset: str, folder: Path, noto: Path) -> None:
    """Fetches and encodes a dataset, and measures the base on it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if dataset in ("noto", "twenty"):
        _images(dataset, folder / "images", noto)
    _params(Run(dataset, "", {}), folder)
    for stage in ("fetch base", "fetch dataset", "encode images", "encode captions", "evaluate base"):
        measured(["-m", *f"stages.{stage}".split()], folder)


def _images(dataset: str, folder: Path, noto: Path) -> None:
    """Writes `noto`: Noto's emoji with the names of OpenMoji; or `twenty`: forty drawings, two for each of twenty prompts."""
    from t2i.data.records import split_of
    from t2i.fetch.source import content_key
    from t2i.fetch.sources.openmoji import STYLES, draw, names

    folder.mkdir()
    rows: list[tuple[str, bytes, str]] = []
    if dataset == "noto":
        files = {code: noto / f"{code.lower()}.png" for code in sorted(names()) if not re.search("1F3F[B-F]|^1F1", code)}
        rows += [(code, file.read_bytes(), names()[code]) for code, file in files.items() if file.is_file()]
    else:
        drawn: dict[str, list[tuple[str, bytes]]] = {"train": [], "heldout": []}
        for code in sorted(names())[5::17]:
            picture = draw(code, 64, *STYLES["night"])
            drawn[split_of(content_key(picture), 0.5)].append((code, picture))
        for (code, seen), (other, unseen) in zip(drawn["train"][:20], drawn["heldout"][:20], strict=True):
            rows += [(code, seen, names()[code]), (other, unseen, names()[code])]
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for code, image, caption in rows:
            (folder / f"{code}.png").write_bytes(image)
            file.write(json.dumps({"file_name": f"{code}.png", "text": caption}) + "\n")


def _params(run: Run, folder: Path) -> None:
    params: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["base"] |= {"local": str(ROOT / "base/openmoji"), "clip": str(ROOT / "base/openmoji/clip")}
    if run.dataset in ("noto", "twenty"):
        params["fetch"] |= {
            "source": {"name": "folder", "captions": {"name": "metadata", "column": "text"}},
            "local": str(folder / "images"),
        }
    else:
        params["fetch"]["local"] = str(folder)
        params["fetch"]["source"]["style"] = run.dataset
    if run.dataset == "twenty":
        params["fetch"]["heldout_fraction"] = 0.5
        params["evaluate"]["prompts"] = 20
    params["train"] |= run.train
    params["sweep"]["guidance_scales"] = []
    params["runtime"]["validation"]["every_steps"] = 10_000
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)


if __name__ == "__main__":
    typer.run(main)
