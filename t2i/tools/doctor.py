"""Verb: look at everything that a long run stands on, and say in plain lines what is wrong and what to do."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from t2i.core.files import free_bytes, in_bytes, size_of, work_root
from t2i.core.locks import holder
from t2i.core.params import ParamsError
from t2i.data.batches import CachedRecords
from t2i.data.caches import check_caches, dataset_digests
from t2i.data.manifest import check_hashes, read_manifest
from t2i.data.pixels import EXTENSIONS
from t2i.data.records import SPLITS
from t2i.data.shards import index
from t2i.encode.roundtrip import psnr_of_records
from t2i.fetch.weights import check_weights
from t2i.model.family import Family, load_family
from t2i.tools.memory import available_memory, checkpoints_bytes, count_weights, state_bytes
from t2i.tools.sections import Sections, load_sections, unread
from t2i.tools.surroundings import Finding, checkout, device, dvc, tried
from t2i.train import checkpoint


def doctor(params_file: Path, data: Path, *, deep: bool) -> Iterator[Finding]:
    """Yields what it finds, in the order in which a run would meet it; changes nothing.

    Args:
        params_file: params.yaml.
        data: folder of what the stages write.
        deep: whether caches and checkpoints are held to their sha256, byte by byte, and some records are decoded back.
    """
    yield from checkout()
    yield from dvc()
    try:
        sections = load_sections(params_file)
    except ParamsError as error:
        yield from (Finding("wrong", "parameters", line) for line in str(error).splitlines())
        return
    yield Finding("ok", "parameters", f"{params_file}: every section is as it should be")
    for name in unread(params_file):
        yield Finding("note", "parameters", f"no stage reads the section `{name}`: take it out if it is not yours")
    yield from device(sections)
    base = data / "base" if (data / "base").is_dir() else Path(sections.base.local)
    if sections.base.hub is not None and base != data / "base":
        yield Finding("note", "base", f"{sections.base.hub} is not fetched yet: `t2i fetch base`, which `dvc repro` does too")
        return
    try:
        family = _family(sections, base)
    except (ValueError, OSError) as error:
        yield Finding("wrong", "base", str(error))
        return
    yield Finding("ok", "base", f"{base}: a {sections.base.family}")
    if deep:
        yield from tried("weights", partial(_weights, base))
    yield from _needs(sections, base, data)
    yield from _caches(sections, family, params_file, base, data, deep=deep)
    yield from _work(deep=deep)


def _family(sections: Sections, base: Path) -> Family:
    family = load_family(sections.base.family, base, sections.train.objective.scheduler_changes())
    sections.encode_images.check_factor(family.vae_factor)
    return family


def _weights(base: Path) -> str:
    files = sorted(base.rglob("*.safetensors"))
    for file in files:
        check_weights(file)
    return f"{len(files)} files of {base} are whole, every number in them is finite"


def _needs(sections: Sections, base: Path, data: Path) -> Iterator[Finding]:
    """Memory and disk that training will hold."""
    trained, whole = count_weights(base / "unet", sections.train.trainable)
    if not trained:
        yield Finding("wrong", "base", f"`train.trainable` {sections.train.trainable!r} fits no parameter of the UNet")
    state, memory = state_bytes(sections.train, sections.runtime, trained, whole), available_memory(sections.runtime)
    said = f"{in_bytes(state)} of state for {trained / 1e6:.3g} of {whole / 1e6:.3g} M parameters, {in_bytes(memory)} free"
    less = "; train fewer (`train.trainable`), or set optimizer adamw_8bit, `runtime.ema_device: cpu`"
    yield Finding("ok", "memory", said) if state < memory else Finding("wrong", "memory", said + less)
    kept, model, work = checkpoints_bytes(sections.runtime, trained), 2 * size_of(base), work_root()
    yield _room("checkpoints", kept, work, "make room, or set T2I_WORK_DIR to a folder on another disk")
    yield _room("model", model, data, "make room")


def _room(about: str, size: int, folder: Path, remedy: str) -> Finding:
    said = f"up to {in_bytes(size)}, {in_bytes(free_bytes(folder))} free at {folder} (`t2i plan` counts the caches too)"
    return Finding("ok", about, said) if size < free_bytes(folder) else Finding("wrong", about, f"{said}: {remedy}")


def _work(*, deep: bool) -> Iterator[Finding]:
    """What killed or running stages have left."""
    for folder in sorted(work_root().glob("*-*")):
        steps = sorted(folder.glob("step-????????"))
        if (process := holder(folder)) is not None:
            yield Finding("note", str(folder), f"process {process} is at work here")
        elif not (folder / "finished").exists():
            after = f", {steps[-1].name} the newest checkpoint" if steps else ""
            said = (
                f"{in_bytes(size_of(folder))} of a run that was broken off{after}: the same command goes on; rm -r forgets it"
            )
            yield Finding("note", str(folder), said)
        for saved in steps if deep else ():
            problem = checkpoint.damage(saved)
            yield Finding("wrong" if problem else "ok", str(saved), problem or "every byte as it was written")


def _caches(sections: Sections, family: Family, params_file: Path, base: Path, data: Path, *, deep: bool) -> Iterator[Finding]:
    found: list[Finding] = []
    for folder in (data / "raw/images", data / "latents", data / "embeds"):
        if folder.is_dir():
            found += tried(str(folder), partial(_whole, folder, deep=deep))
        else:
            found.append(Finding("note", str(folder), "is not there yet: `dvc repro` makes it"))
        yield found[-1]
    if all(finding.state == "ok" for finding in found):
        yield from tried("caches", partial(_fitting, params_file, base, data))
        if deep:
            yield from tried("round trip", partial(_decoded, sections, family, data))


def _whole(folder: Path, *, deep: bool) -> str:
    files = read_manifest(folder).files
    if deep:
        check_hashes(folder)
    counted = f"{len(files)} files, {in_bytes(sum(file.bytes for file in files))}"
    return f"{counted}, every byte as it was written" if deep else f"{counted}, sizes as written (--deep reads them)"


def _fitting(params_file: Path, base: Path, data: Path) -> str:
    latents, embeds = data / "latents", data / "embeds"
    check_caches(latents, embeds, dataset_digests(data / "raw"), params_file, base=base, hashes=False)
    counts = {split: len(CachedRecords(latents, embeds, split)) for split in SPLITS}
    return f"made of this base, dataset and parameters; {counts['train']} records train, {counts['heldout']} held out"


def _decoded(sections: Sections, family: Family, data: Path) -> str:
    images = [member for split in SPLITS for member in index(data / "raw/images", split, EXTENSIONS.values())]
    device, batch_size = sections.runtime.torch_device(), sections.runtime.encode_batch_size
    latents, vae = data / "latents", family.load_vae(device)
    found = psnr_of_records(sections.encode_images, family, vae, images, latents, batch_size=batch_size, device=device)
    worst = min(found, key=lambda key: min(found[key]))
    mean = sum(map(sum, found.values())) / sum(map(len, found.values()))
    if mean < sections.encode_images.min_psnr:
        raise ValueError(f"{latents}: decoded, records are {mean:.1f} dB from their images: run `t2i encode images` again")
    return f"{len(found)} records decoded and held to their images: {mean:.1f} dB, the worst {worst} {min(found[worst]):.1f}"
