"""Verb: look at everything that a long run stands on, and say in plain lines what is wrong and what to do."""

import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch

import t2i.params
from t2i import checkpoint
from t2i.batches import CachedRecords, micro_batches
from t2i.caches import check_caches, dataset_digests
from t2i.family import Family, load_family
from t2i.images import EXTENSIONS
from t2i.manifest import check_hashes, read_manifest
from t2i.memory import available_memory, count_weights, state_bytes
from t2i.optim import make_optimizer
from t2i.params import ParamsError
from t2i.records import SPLITS
from t2i.roundtrip import psnr_of_records
from t2i.sections import Sections, load_sections
from t2i.shards import index
from t2i.trackers import check_installed
from t2i.weights import check_weights
from t2i.work import holder, in_bytes, size_of


class Finding(NamedTuple):
    """One line."""

    state: Literal["ok", "note", "wrong"]
    about: str
    said: str
    """What is so; where it is wrong, what to do."""


def doctor(params: Path, data: Path, *, deep: bool) -> Iterator[Finding]:
    """Yields what it finds, in the order in which a run would meet it; changes nothing.

    Args:
        params: params.yaml.
        data: folder of what the stages write.
        deep: whether caches and checkpoints are held to their sha256, byte by byte, and some records are decoded back.
    """
    yield from _checkout()
    yield from _dvc()
    try:
        sections = load_sections(params)
    except ParamsError as error:
        yield from (Finding("wrong", "parameters", line) for line in str(error).splitlines())
        return
    yield Finding("ok", "parameters", f"{params}: every section is as it should be")
    yield from _device(sections)
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
        yield from _tried("weights", partial(_weights, base))
    yield from _needs(sections, base, data)
    yield from _caches(sections, family, params, base, data, deep=deep)
    yield from _work(data, deep=deep)


def _tried(about: str, check: Callable[[], str]) -> Iterator[Finding]:
    """Yields what a check says, or why it fails."""
    try:
        yield Finding("ok", about, check())
    except (ValueError, OSError) as error:
        yield Finding("wrong", about, str(error))


def _checkout() -> Iterator[Finding]:
    here, code = Path.cwd(), Path(t2i.params.__file__).parents[1]
    if code != here:
        yield Finding("note", "checkout", f"this command's code is that of {code}; the stages run that of {here}")
    for name, remedy in ((".git", "git init"), (".dvc", "dvc init"), ("dvc.yaml", "run this where dvc.yaml lies")):
        if not Path(name).exists():
            yield Finding("wrong", "checkout", f"{here} has no {name}: {remedy}")
    lock = Path("dvc.lock")
    if lock.is_file() and not lock.stat().st_size:
        yield Finding(
            "wrong", "checkout", "dvc.lock is empty, as a full disk leaves it: git checkout dvc.lock, dvc commit -f train"
        )
    yield from _pins(Path("requirements.txt"))


def _pins(path: Path) -> Iterator[Finding]:
    wanted = dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.M)) if path.is_file() else {}
    other = [f"{name} {found} (pinned {pin})" for name, pin in wanted.items() if (found := _installed(name)) != pin]
    if other:
        said = (
            f"{len(other)} packages are not as pinned, such as {', '.join(other[:3])}: bits may differ; pip install -r {path}"
        )
        yield Finding("note", "packages", said)
    elif wanted:
        yield Finding("ok", "packages", f"{len(wanted)} packages as {path} pins them; Python {platform.python_version()}")


def _installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "none"


def _device(sections: Sections) -> Iterator[Finding]:
    train, runtime = sections.train, sections.runtime

    def device() -> str:
        if (kind := runtime.torch_device()) == "cpu":
            return f"{psutil.cpu_count()} CPU cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()} ({kind}), torch {torch.__version__}"

    def settings() -> str:
        if train.precision == "fp16" and runtime.torch_device() == "cpu":
            raise ValueError("`train.precision` fp16 needs a GPU: on the CPU set bf16 or fp32")
        check_installed(runtime.trackers)
        make_optimizer([torch.zeros(1, requires_grad=True)], train.optimizer)
        shares = micro_batches(train.batch_size, 0, runtime.processes, runtime.micro_batch_size)
        return f"steps of {train.batch_size} images in {runtime.processes} process(es), {len(shares)} micro-batch(es) each"

    yield from _tried("device", device)
    yield from _tried("settings", settings)


def _family(sections: Sections, base: Path) -> Family:
    family = load_family(sections.base.family, base, sections.train.objective.scheduler_changes())
    if (px := sections.encode_images.resolution_px) % family.vae_factor:
        raise ValueError(f"`encode.images.resolution_px` {px} is no multiple of the VAE's {family.vae_factor}")
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
    disk = (sections.runtime.keep_checkpoints + 1) * 8 * (whole + trained) + 2 * size_of(base)
    free = psutil.disk_usage(str(data if data.is_dir() else Path())).free
    said = f"checkpoints and model take up to {in_bytes(disk)}, {in_bytes(free)} free (`t2i plan` counts the caches too)"
    yield Finding("ok", "disk", said) if disk < free else Finding("wrong", "disk", f"{said}: make room, or set T2I_WORK_DIR")


def _caches(sections: Sections, family: Family, params: Path, base: Path, data: Path, *, deep: bool) -> Iterator[Finding]:
    raw, latents, embeds = data / "raw/images", data / "latents", data / "embeds"

    def whole(folder: Path) -> str:
        files = read_manifest(folder).files
        if deep:
            check_hashes(folder)
        counted = f"{len(files)} files, {in_bytes(sum(file.bytes for file in files))}"
        return f"{counted}, every byte as it was written" if deep else f"{counted}, sizes as written (--deep reads them)"

    def fitting() -> str:
        check_caches(latents, embeds, dataset_digests(data / "raw"), params, base=base, hashes=False)
        counts = {split: len(CachedRecords(latents, embeds, split)) for split in SPLITS}
        return f"made of this base, dataset and parameters; {counts['train']} records train, {counts['heldout']} held out"

    def decoded() -> str:
        images = [member for split in SPLITS for member in index(raw, split, EXTENSIONS.values())]
        device = sections.runtime.torch_device()
        found = psnr_of_records(sections.encode_images, family, family.load_vae(device), images, latents, device)
        worst = min(found, key=lambda key: min(found[key]))
        mean = sum(map(sum, found.values())) / sum(map(len, found.values()))
        if mean < sections.encode_images.min_psnr:
            raise ValueError(f"{latents}: decoded, records are {mean:.1f} dB from their images: run `t2i encode images` again")
        return (
            f"{len(found)} records decoded and held to their images: {mean:.1f} dB, the worst {worst} {min(found[worst]):.1f}"
        )

    found: list[Finding] = []
    for folder in (raw, latents, embeds):
        if folder.is_dir():
            found += _tried(str(folder), partial(whole, folder))
        else:
            found.append(Finding("note", str(folder), "is not there yet: `dvc repro` makes it"))
        yield found[-1]
    if all(finding.state == "ok" for finding in found):
        yield from _tried("caches", fitting)
        if deep:
            yield from _tried("round trip", decoded)


def _work(data: Path, *, deep: bool) -> Iterator[Finding]:
    """What killed or running stages have left."""
    root = Path(os.environ.get("T2I_WORK_DIR") or data / "work")
    for folder in sorted(root.glob("*-*")):
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


def _dvc() -> Iterator[Finding]:
    """What DVC says is in use; what a dead process has left there, its next run clears away by itself."""
    locks = Path(".dvc/tmp/rwlock")
    held = json.loads(locks.read_text(encoding="utf-8") or "{}") if locks.is_file() else {}
    readers = [one for those in held.get("read", {}).values() for one in those]
    for process in {one["pid"] for one in [*held.get("write", {}).values(), *readers]}:
        if psutil.pid_exists(process):
            words = " ".join(psutil.Process(process).cmdline())
            if "dvc" in words:
                yield Finding("note", "dvc", f"process {process} is running a pipeline here ({words[:80]})")
            else:
                said = f"thinks that process {process} is running a pipeline here, but that is {words[:80]!r}: rm {locks}"
                yield Finding("wrong", "dvc", said)
