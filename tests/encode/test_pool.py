import io
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from t2i.data.decoding import decode
from t2i.data.index import Index
from t2i.data.manifest import write_manifest
from t2i.data.members import Member
from t2i.data.pixels import normalized, views_of
from t2i.data.shards import write_shard
from t2i.encode.pool import Pool
from t2i.encode.views import EncodeImages
from tests.projects import ROOT

pytestmark = pytest.mark.slow

FORMS = {"resolution_px": 16, "interpolation": "lanczos", "flip": True, "background": "#ffffff", "seed": 0, "precision": "fp32"}
SECTION = EncodeImages(**FORMS, crop={"name": "random", "views": 2}, psnr_records=1, min_psnr=0.0)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 31, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def members(tmp_path: Path) -> list[Member]:
    """Returns ten images of four views, and one of one view."""
    images = {f"train-{n:05d}.tar": {f"k{n}{i}": ("png", png(5 * n + i)) for i in range(5)} for n in range(2)}
    images["heldout-00000.tar"] = {"h": ("png", png(99))}
    write_manifest(tmp_path, [row for name, content in images.items() for row in write_shard(tmp_path / name, content)], {})
    return [*Index(tmp_path, "train", ["png"]), *Index(tmp_path, "heldout", ["png"])]


def content(member: Member) -> bytes:
    return member.shard.read_bytes()[member.offset : member.offset + member.size]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_views_are_those_of_this_process_in_order(members, batch_size, processes) -> None:
    wanted = [
        (member.key, seen)
        for member in members
        for seen in views_of(decode(content(member), "#ffffff"), (16, 16), "lanczos", SECTION.views(member.split, member.key))
    ]
    with closing(Pool(SECTION, batch_size=batch_size, processes=processes)) as pool:
        batches = [batch._replace(levels=batch.levels.clone()) for batch in pool.batches(members)]
    assert {batch.levels.shape for batch in batches} == {(batch_size, 16, 16, 3)}
    found = [
        (member.key, geometry, pixels)
        for batch in batches
        for (member, geometry), pixels in zip(batch.views, normalized(batch.levels), strict=False)
    ]
    assert [(key, geometry) for key, geometry, _ in found] == [(key, seen.geometry) for key, seen in wanted]
    assert all(pixels.equal(seen.pixels) for (_, _, pixels), (_, seen) in zip(found, wanted, strict=True))
    assert not batches[-1].levels[len(batches[-1].views) :].any()


def test_no_images_need_no_processes() -> None:
    with closing(Pool(SECTION, batch_size=4, processes=2)) as pool:
        assert not list(pool.batches([]))
        assert not decoders()


def decoders() -> list[psutil.Process]:
    """Returns the processes of pools."""
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_a_damaged_image_is_named(members) -> None:
    damaged = members[7]
    with damaged.shard.open("r+b") as shard:
        shard.seek(damaged.offset)
        shard.write(b"no image")
    with closing(Pool(SECTION, batch_size=3, processes=2)) as pool:
        with pytest.raises(ValueError, match=rf"train-00001.tar: record {damaged.key}: not a readable image") as error:
            list(pool.batches(members))
        assert "\n" not in str(error.value)
    assert not decoders()


@pytest.mark.parametrize("killed", [1, 2])
def test_a_killed_process_is_an_error_and_no_hang(members, killed) -> None:
    with closing(Pool(SECTION, batch_size=1, processes=2)) as pool:
        batches = pool.batches(members * 20)
        next(batches)
        for process in decoders()[:killed]:
            process.send_signal(signal.SIGKILL)
        with pytest.raises(ValueError, match=r"record .*: the process .* SIGKILL; .* `runtime.decode_processes`") as error:
            list(batches)
        assert "\n" not in str(error.value)
    assert not decoders()


ENDLESS = """
import sys, time
from contextlib import closing
from pathlib import Path
from t2i.data.index import Index
from t2i.encode.pool import Pool
from t2i.encode.views import EncodeImages
section = EncodeImages.model_validate_json(sys.argv[2])
members = list(Index(Path(sys.argv[1]), "train", ["png"]))
with closing(Pool(section, batch_size=1, processes=2)) as pool:
    for batch in pool.batches(members * 1000):
        print("decoded", flush=True)
        time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_and_no_memory_outlive_the_parent(members, number) -> None:
    words = [sys.executable, "-c", ENDLESS, str(members[0].shard.parent), SECTION.model_dump_json()]
    parent = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert parent.stdout.readline() == b"decoded\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(parent.pid, number) if number == signal.SIGINT else parent.send_signal(number)  # Ctrl-C reaches all processes
    _, said = parent.communicate(timeout=60)
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left
    assert said.count(b"Traceback") == (number == signal.SIGINT)  # the parent's alone
    assert not list(Path("/dev/shm").glob(f"*{parent.pid}*"))
