"""Surroundings: checks of what a run depends on in addition to its data: checkout, packages, DVC's files, device."""

import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch

import t2i.core.params
from t2i.core.files import check_in_repository
from t2i.data.manifest import OutOfDate
from t2i.model.base import Base
from t2i.model.launch import in_process_group
from t2i.tools.sections import Sections
from t2i.train.engine import check_settings


class Finding(NamedTuple):
    """One line of the result. If something is wrong, it says what to do."""

    state: Literal["ok", "note", "wrong"]
    about: str
    message: str


def tried(about: str, check: Callable[[], str]) -> Iterator[Finding]:
    """Yields the result of a check, or the reason why it fails; only a note if `dvc repro` mends it."""
    try:
        yield Finding("ok", about, check())
    except OutOfDate as error:
        yield Finding("note", about, str(error))
    except (ValueError, OSError) as error:
        yield Finding("wrong", about, str(error))


def checkout(data: Path) -> Iterator[Finding]:
    """Yields findings about the working directory, the folder of outputs and the installed packages."""
    here, code = Path.cwd(), Path(t2i.core.params.__file__).parents[2]
    if code != here:
        yield Finding(
            "note",
            "checkout",
            f"this command runs the code in {code}, but the stages run the code in {here}: pip install -e {here}",
        )
    if (system := platform.system()) != "Linux":
        lacking = {"Windows": "; outputs are not locked, and folders are not flushed to the disk"}.get(system, "")
        yield Finding("note", "system", f"{system} is not tested by this project{lacking}")
    for name, remedy in ((".git", "git init"), (".dvc", "dvc init")):
        if not any((folder / name).exists() for folder in (here, *here.parents)):
            yield Finding("wrong", "checkout", f"neither {here} nor a folder above it has a {name}: {remedy}")
    if not Path("dvc.yaml").exists():
        yield Finding("wrong", "checkout", f"{here} has no dvc.yaml: change to the folder that has it")
    try:
        if in_process_group():
            yield Finding("note", "checkout", f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: `train` waits for as many processes")
    except ValueError as error:
        yield Finding("wrong", "checkout", str(error))
    try:
        check_in_repository(data)
    except ValueError as error:
        yield Finding("wrong", "checkout", str(error))
    lock = Path("dvc.lock")
    if lock.is_file() and not lock.stat().st_size:
        yield Finding(
            "wrong",
            "checkout",
            "dvc.lock is empty, probably after a full disk: run `git checkout dvc.lock`, then `dvc commit -f train`",
        )
    yield from _pins(Path("requirements.txt"))


def _pins(path: Path) -> Iterator[Finding]:
    wanted = dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.M)) if path.is_file() else {}
    other = [f"{name} {found} (pinned {pin})" for name, pin in wanted.items() if (found := _installed(name)) != pin]
    if other:
        message = (
            f"{path}: {len(other)} packages have other versions, such as {', '.join(other[:3])}; results may differ in "
            f"rounding. To install the pinned versions: pip install -r {path}"
        )
        yield Finding("note", "packages", message)
    elif wanted:
        yield Finding(
            "ok", "packages", f"{len(wanted)} packages have the versions pinned in {path}; Python {platform.python_version()}"
        )


def _installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "not installed"


def dvc() -> Iterator[Finding]:
    """Yields findings about DVC's locks. DVC itself removes the locks of dead processes on its next run."""
    locks = Path(".dvc/tmp/rwlock")
    try:
        held = json.loads(locks.read_text(encoding="utf-8") or "{}") if locks.is_file() else {}
        readers = [one for those in held.get("read", {}).values() for one in those]
        processes = {one["pid"] for one in [*held.get("write", {}).values(), *readers]}
    except (ValueError, AttributeError, TypeError, KeyError):
        yield Finding("wrong", "dvc", f"{locks} cannot be read: if no dvc is running, rm {locks}")
        return
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it ended, or belongs to another user
            words = " ".join(psutil.Process(process).cmdline())
            if "dvc" in words:
                yield Finding("note", "dvc", f"process {process} is running a pipeline here: {words[:80]!r}")
            else:
                yield Finding("wrong", "dvc", f"{locks} names process {process}, which is not dvc ({words[:80]!r}): rm {locks}")


def device(sections: Sections) -> Iterator[Finding]:
    """Yields findings about the device that training runs on, and whether it supports the settings."""
    train, runtime = sections.train, sections.runtime

    def settings() -> str:
        micro_batches = len(check_settings(train, runtime))
        return f"steps of {train.batch_size} images, {runtime.processes} process(es) with {micro_batches} micro-batch(es) each"

    for note in train.notes(train.steps) if train.steps else []:
        yield Finding("note", "settings", note)
    try:
        here = runtime.torch_device()
    except ValueError as error:
        yield Finding("wrong", "device", str(error))
        return
    yield Finding("ok", "device", f"{_named(here)}, torch {torch.__version__}")
    if here in ("mps", "xpu") or (here == "cuda" and torch.version.hip):
        kind = "cuda through ROCm" if here == "cuda" else here
        yield Finding("note", "device", f"{kind} is not tested by this project; `runtime.device: cpu` is")
    yield from tried("settings", settings)
    if here == "cpu":
        yield bf16_finding(bf16_time(), {"train": train.precision, "evaluate": sections.evaluate.precision})


_LARGE = 300_000_000
"""Least number of parameters of a UNet that trains for days on a CPU; that of Stable Diffusion has 860 million."""


def without_gpu(section: Base, parameters: int) -> Iterator[Finding]:
    """Yields a finding if PyTorch finds no GPU and the base is large.

    Args:
        section: the section `base`.
        parameters: the number of parameters of the UNet; 0 if it is not fetched yet, so that only its name is known.
    """
    if not torch.accelerator.is_available() and (parameters > _LARGE or (not parameters and section.hub)):
        size = f"of {parameters / 1e6:,.0f} M parameters" if parameters else "of the size of Stable Diffusion's"
        yield Finding("note", "device", f"PyTorch finds no GPU here; a UNet {size} trains for days on a CPU")


def _named(device: str) -> str:
    """Returns what a device is: `cpu: 8 CPU cores, 4 threads`, or the number of GPUs and their name."""
    if device == "cpu":
        return f"cpu: {psutil.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    name = "GPU of Apple" if device == "mps" else torch.get_device_module(device).get_device_name()
    return f"{device}: {torch.accelerator.device_count()} x {name}"


def bf16_time() -> float:
    """Returns the time of a matrix product in bf16 on this CPU, relative to one in fp32: 0.5 in hardware, 2 to 50 emulated."""

    def fastest(dtype: torch.dtype) -> float:
        matrix, found = torch.rand(768, 768).to(dtype), []
        for _ in range(6):
            started = time.perf_counter()
            matrix @ matrix
            found.append(time.perf_counter() - started)
        return min(found)

    return fastest(torch.bfloat16) / fastest(torch.float32)


def bf16_finding(bf16: float, precisions: Mapping[str, str]) -> Finding:
    """Returns a finding about bf16 on this CPU.

    Args:
        bf16: the result of `bf16_time`.
        precisions: the precision of each section, by name.
    """
    message = f"a matrix product in bf16 takes {bf16:.1f} times as long as in fp32"
    slow = [f"`{section}.precision`" for section, precision in precisions.items() if precision == "bf16"] if bf16 > 1.2 else []
    if slow:
        return Finding("note", "precision", f"{message}: this CPU emulates bf16; set {' and '.join(slow)} to fp32")
    return Finding("ok", "precision", message)
