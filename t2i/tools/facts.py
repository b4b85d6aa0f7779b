"""Facts: collects what the card and digests.json of a published model state, from the outputs of its run."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from t2i.data.digests import sha256_of
from t2i.data.manifest import read_manifest
from t2i.data.storage import MANIFEST, Storage
from t2i.evaluate.advice import StageMetrics
from t2i.evaluate.verdict import verdict
from t2i.model.layout import read_object
from t2i.tools.differences import Differences, differences
from t2i.tools.finished import Stages
from t2i.tools.licences import Origin, base_origin, dataset_origin, published_licence
from t2i.tools.model_card import Card, Sample
from t2i.tools.preset import leaves
from t2i.tools.private import short, without_paths
from t2i.tools.revision import code_digest_of, code_files, committed_text, revision
from t2i.tools.sections import Sections, load_sections
from t2i.tools.usage import Usage, usage_of
from t2i.train.card import in_words

_SETS = {"raw/images": "images of the dataset", "latents": "latents", "embeds": "embeddings"}
"""The folders of shards, and what they hold."""
_LIBRARIES = ("t2i", "torch", "diffusers", "transformers", "accelerate", "dvc")


def facts(params_file: Path, data: Path, presets: Path, samples: list[Sample], place: str, licence: str | None) -> Card:
    """Returns what the card states.

    Args:
        params_file: the parameters of the run.
        data: the folder of its outputs.
        presets: the folder of the presets.
        samples: the pictures in the folder.
        place: where a user will load the model from.
        licence: the licence that the publisher chose, if any.
    """
    sections, text = load_sections(params_file), params_file.read_text(encoding="utf-8-sig")
    public = without_paths(text, parsed(text))
    model, source = data / "model", sections.fetch.source
    stated, described = _base_of(model), read_object(data / "raw/dataset.json")
    base = base_origin(model, stated, hub=sections.base.hub is not None and "source" in stated)
    dataset = dataset_origin(described, hub=source.name == "hub" and source.id is not None)
    figures = _figures(data / "reports")
    usage = _usage(sections, model, base, place, samples)
    return Card(
        usage=usage,
        base=base,
        dataset=dataset,
        base_facts=_others(stated, ("source", "commit")),
        dataset_facts=_others(described, ("source", "commit", "licence", "images", "captions", "tags")),
        licence=published_licence([base, dataset], licence),
        licence_files=sorted(path.name for path in model.glob("LICENSE*")),
        samples=samples,
        verdict=verdict(figures),
        metrics=dict(figures.evaluation),
        intervals=dict(figures.intervals),
        settings=_settings(sections),
        parameters=public,
        redacted=public != text,
        differences=_differences(parsed(public), committed_text(params_file), presets),
        revision=revision(),
        reads_local=source.reads_local,
        digests=_main_digests(described, data, usage.weights),
        versions=", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    )


def _base_of(model: Path) -> dict[str, Any]:
    """Returns what a model states of its base; empty if it does not."""
    return read_object(model / "source.json") if (model / "source.json").is_file() else {}


def _figures(reports: Path) -> StageMetrics:
    names = ("evaluate/metrics", "evaluate/intervals", "encode-images/metrics", "encode-captions/metrics")
    evaluation, intervals, images, captions = (read_object(reports / f"{name}.json") for name in names)
    return StageMetrics(evaluation, intervals, images, captions)


def _settings(sections: Sections) -> dict[str, Any]:
    return {name: getattr(sections.evaluate, name) for name in ("num_inference_steps", "guidance_scale")}


def _usage(sections: Sections, model: Path, base: Origin, place: str, samples: list[Sample]) -> Usage:
    """Returns how to use the model: with the first prompt that is shown, drawn as in the evaluation."""
    prompt = samples[0].prompt if samples else "a prompt"
    height, width = sections.encode_images.size_px
    arguments = {"height": height, "width": width, **_settings(sections)}
    return usage_of(model, base, place, sections.train.export_dtype, prompt, arguments, sections.sweep.adapter_scale)


def parsed(parameters: str) -> dict[str, Any]:
    """Returns the content of a parameter file; empty if it is not YAML with sections."""
    try:
        content = YAML(typ="safe", pure=True).load(parameters)
    except YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def digests(stages: Stages, card: Card, data: Path, folder: Path, storage: Storage) -> dict[str, Any]:
    """Returns the content of digests.json: sha256 of files, code and shards, and the MD5 that DVC recorded of each stage."""
    return {
        "commit": card.revision.commit,
        "uncommitted_changes": card.revision.changed,
        "dataset": {name: read_object(data / "raw/dataset.json")[name] for name in ("images", "captions")},
        "shards": {name: {file.name: file.sha256 for file in read_manifest(data / name, storage).files} for name in _SETS},
        "code": code_files(),
        "stages": {
            stage: {kind: {short(path): digest for path, digest in entries.items()} for kind, entries in read.items()}
            for stage, read in stages.items()
        },
        "files": {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()},
    }


def _main_digests(described: Mapping[str, Any], data: Path, weights: str) -> dict[str, str]:
    """Returns the digests that the card shows."""
    manifests = {f"manifest of the {what}": sha256_of(data / name / MANIFEST) for name, what in _SETS.items()}
    return {
        f"`{weights}`": sha256_of(data / "model" / weights),
        "captions of the dataset": described["captions"],
        **manifests,
        "code, as listed in digests.json": code_digest_of(code_files()),
    }


def _differences(now: Mapping[str, Any], committed: str | None, presets: Path) -> Differences:
    before = parsed(committed) if committed else {}
    public = parsed(without_paths(committed, before)) if committed else {}
    return differences(dict(leaves(now)), dict(leaves(public)), presets)


def _others(facts: Mapping[str, Any], known: Sequence[str]) -> dict[str, str]:
    return {name: in_words(value) for name, value in facts.items() if name not in known and value is not None}
