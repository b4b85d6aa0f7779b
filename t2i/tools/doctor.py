"""Checks everything that a long run depends on, and says what is wrong and how to fix it."""

import contextlib
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from t2i.core.files import free_bytes, in_bytes, size_of, work_root
from t2i.core.locks import holder
from t2i.core.params import ParamsError
from t2i.data.cached import CachedRecords
from t2i.data.caches import check_caches, dataset_digests
from t2i.data.decoding import EXTENSIONS
from t2i.data.index import Index
from t2i.data.manifest import check_hashes, read_manifest
from t2i.data.records import SPLITS
from t2i.data.storage import Storage
from t2i.encode.roundtrip import psnr_of_records
from t2i.encode.store import COMPLETE
from t2i.fetch.base import check_origin, configure, configure_clip
from t2i.fetch.weights import check_weights
from t2i.model.base import Base
from t2i.model.family import Family, check_base, load_family
from t2i.tools.dataset import dataset
from t2i.tools.memory import FP32_BYTES, available_memory, check_maps, checkpoints_bytes, count_weights, figure, state_bytes
from t2i.tools.sections import Sections, load_sections, unread
from t2i.tools.surroundings import Finding, checkout, device, dvc, tried, without_gpu
from t2i.train import checkpoint
from t2i.train.objective import Objective


def doctor(params_file: Path, data: Path, *, deep: bool) -> Iterator[Finding]:
    """Yields findings in the order in which a run would meet the problems; changes nothing.

    Args:
        params_file: the path of params.yaml.
        data: the folder that the stages write to.
        deep: whether to also check weights, verify the sha256 of caches and checkpoints, and decode some records.
    """
    yield from checkout(data)
    yield from dvc()
    try:
        sections = load_sections(params_file)
    except ParamsError as error:
        yield from (Finding("wrong", "parameters", line) for line in str(error).splitlines())
        return
    yield Finding("ok", "parameters", f"{params_file}: all sections are valid")
    for name in unread(params_file):
        yield Finding(
            "note",
            "parameters",
            f"{params_file}: no stage reads the section `{name}`; correct its name, or remove it if it is not yours",
        )
    yield from device(sections)
    yield from dataset(sections.fetch)
    yield from _base_and_what_is_made_from_it(sections, params_file, data, deep=deep)


def _base_and_what_is_made_from_it(sections: Sections, params_file: Path, data: Path, *, deep: bool) -> Iterator[Finding]:
    found = list(_base(sections, data, deep=deep))
    yield from found
    base = data / "base" if found[-1].state == "ok" else Path(sections.base.local)
    if any(finding.state == "wrong" for finding in found):
        return
    unfetched = found[-1].state == "note" and (sections.base.hub is not None or not (base / "unet").is_dir())
    yield from without_gpu(sections.base, 0 if unfetched else count_weights(base / "unet", sections.train.adapter, "")[1])
    if unfetched:
        return
    if deep:
        yield from tried("weights", partial(_weights, base))
    yield from _needs(sections, base, data)
    yield from _caches(sections, load_family(sections.base.family, base), params_file, base, data, deep=deep)
    yield from _work(deep=deep)


def _base(sections: Sections, data: Path, *, deep: bool) -> Iterator[Finding]:
    """Yields findings about the base that params.yaml names, then one about the base in `data`: ok, if it is the same."""
    section, fetched = sections.base, data / "base"
    if section.hub is None:
        yield from tried("base", partial(_local, section))
    if not fetched.is_dir():
        yield Finding("note", "base", f"{section.hub or section.local} is not fetched yet: run `t2i fetch base` or `dvc repro`")
        return
    try:
        check_origin(section, fetched, deep=deep)
    except ValueError as error:  # a run would fetch it first
        yield Finding("note", "base", str(error))
        return
    yield from tried("base", partial(_trainable, sections, fetched))


def _local(section: Base) -> str:
    """Checks the configurations of a local base, with the changes that the section asks for."""
    with tempfile.TemporaryDirectory() as folder:
        configure(section, Path(folder))
        if Path(section.clip).is_dir():
            configure_clip(section, Path(folder) / "clip")
    return f"{section.local}: can be trained as family {section.family}"


def _trainable(sections: Sections, base: Path) -> str:
    check_base(sections.base.family, base)
    family = load_family(sections.base.family, base, sections.train.objective.scheduler_changes())
    sections.encode_images.check_factor(family.vae_factor)
    Objective(sections.train.objective, family, "cpu")
    return f"{base}: its weights fit, and load as family {sections.base.family}"


def _weights(base: Path) -> str:
    files = sorted(base.rglob("*.safetensors"))
    for file in files:
        check_weights(file)
    return f"{base}: {len(files)} weight files are complete, and all their values are finite"


def _needs(sections: Sections, base: Path, data: Path) -> Iterator[Finding]:
    """Yields findings about the memory and disk space that training needs."""
    train = sections.train
    trained, whole = count_weights(base / "unet", train.adapter, train.trainable)
    if not trained:
        yield Finding(
            "wrong",
            "base",
            f"`train.trainable` {train.trainable!r} and adapter {train.adapter.name} match no weight of the UNet: change one",
        )
    with contextlib.suppress(ValueError):  # the device is not there: a finding before this one says so
        yield _memory(sections, trained, whole)
    kept, work = checkpoints_bytes(train, sections.runtime, trained), work_root()
    model = 2 * size_of(base) if not train.adapter.keeps_base else 4 * FP32_BYTES * trained  # the new one beside the old one
    yield _room("checkpoints", kept, work, "free some space, or set T2I_WORK_DIR to a folder on another disk")
    yield _room("model", model, data, "free some space")
    if sections.runtime.store:
        cache = sections.runtime.shard_cache
        there = size_of(cache.path) if cache.path.is_dir() else 0
        remedy = "free some space, or change `runtime.shard_cache`"
        yield _room("shard cache", cache.most_bytes - there, cache.path, remedy)


def _memory(sections: Sections, trained: int, whole: int) -> Finding:
    """Returns a finding about the memory of the device; raises a ValueError if there is no such device."""
    state, memory = state_bytes(sections.train, sections.runtime, trained, whole), available_memory(sections.runtime)
    message = (
        f"training {figure(trained / 1e6)} of {figure(whole / 1e6)} M parameters needs {in_bytes(state)}, "
        f"{in_bytes(memory)} are free"
    )
    if state < memory:
        return Finding("ok", "memory", message)
    remedy = "train fewer parameters (`train.trainable`)"
    if sections.runtime.torch_device() == "cuda":
        remedy += ", or set `train.optimizer.name: adamw_8bit` or `runtime.ema_device: cpu`"
    return Finding("wrong", "memory", f"{message}: {remedy}")


def _room(about: str, size: int, folder: Path, remedy: str) -> Finding:
    message = f"up to {in_bytes(size)} needed, {in_bytes(free_bytes(folder))} free at {folder} (`t2i plan` includes the caches)"
    return Finding("ok", about, message) if size < free_bytes(folder) else Finding("wrong", about, f"{message}: {remedy}")


def _work(*, deep: bool) -> Iterator[Finding]:
    """Yields findings about the work folders of running and interrupted stages."""
    for folder in sorted(work_root().glob("*-*")):
        steps = sorted(folder.glob("step-????????"))
        if (process := holder(folder)) is not None:
            yield Finding("note", str(folder), f"in use by process {process}")
        elif not any((folder / done).exists() for done in ("finished", COMPLETE)):
            newest = f", newest checkpoint {steps[-1].name}" if steps else ""
            remedy = f"run the same command to resume, or `rm -r {folder}` to discard it"
            message = f"{in_bytes(size_of(folder))} of an interrupted run{newest}: {remedy}"
            yield Finding("note", str(folder), message)
        for saved in steps if deep else ():
            problem = checkpoint.damage(saved)
            yield Finding("wrong" if problem else "ok", str(saved), problem or "checksum correct")


def _caches(sections: Sections, family: Family, params_file: Path, base: Path, data: Path, *, deep: bool) -> Iterator[Finding]:
    found: list[Finding] = []
    storage = sections.runtime.storage()
    for folder in (data / "raw/images", data / "latents", data / "embeds"):
        if folder.is_dir():
            found += tried(str(folder), partial(_whole, folder, storage, deep=deep))
        else:
            found.append(Finding("note", str(folder), "not there yet; `dvc repro` creates it"))
        yield found[-1]
    if all(finding.state == "ok" for finding in found):
        yield from (fitting := list(tried("caches", partial(_fitting, params_file, base, data, storage))))
        if deep and fitting[-1].state == "ok":
            yield from tried("round trip", partial(_decoded, sections, family, data, storage))


def _whole(folder: Path, storage: Storage, *, deep: bool) -> str:
    files = read_manifest(folder, storage).files
    if deep:
        check_hashes(folder, storage=storage, fetched=True)
    counted = f"{len(files)} files, {in_bytes(sum(file.bytes for file in files))}"
    return f"{counted}, checksums correct" if deep else f"{counted}, sizes correct (--deep verifies checksums)"


def _fitting(params_file: Path, base: Path, data: Path, storage: Storage) -> str:
    latents, embeds = data / "latents", data / "embeds"
    files = [file for folder in (latents, embeds) for file in read_manifest(folder, storage).files]
    check_maps(sum(not storage.elsewhere(file) for file in files))
    check_caches(latents, embeds, dataset_digests(data / "raw"), params_file, base=base, storage=storage, hashes=False)
    counts = {split: len(CachedRecords(latents, embeds, split, storage)) for split in SPLITS}
    return f"match the base, dataset and parameters; {counts['train']} training and {counts['heldout']} held-out records"


def _decoded(sections: Sections, family: Family, data: Path, storage: Storage) -> str:
    images = [member for split in SPLITS for member in Index(data / "raw/images", split, EXTENSIONS.values(), storage)]
    device, batch_size = sections.runtime.torch_device(), sections.runtime.encode_batch_size
    latents, vae = data / "latents", family.load_vae(device)
    shards = {file.name: storage.path(latents, file) for file in read_manifest(latents, storage).files}
    found = psnr_of_records(sections.encode_images, family, vae, images, shards, storage, batch_size=batch_size, device=device)
    worst = min(found, key=lambda key: min(found[key]))
    mean = sum(map(sum, found.values())) / sum(map(len, found.values()))
    if mean < sections.encode_images.min_psnr:
        raise ValueError(
            f"{latents}: decoded records have a PSNR of {mean:.1f} dB, wanted at least `encode.images.min_psnr` "
            f"{sections.encode_images.min_psnr}: run `t2i encode images` again"
        )
    return f"{len(found)} records decoded: mean PSNR {mean:.1f} dB, lowest {min(found[worst]):.1f} dB (record {worst})"
