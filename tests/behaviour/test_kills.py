"""kill -9 at chosen events of each stage that writes much: a second run writes the same files as an uninterrupted one."""

import shutil
import signal

import pytest
import torch

from t2i.data.manifest import read_manifest
from t2i.data.records import SPLITS, split_of_shard
from t2i.train import checkpoint
from t2i.train.checkpoint import Checkpoint
from tests.projects import LORA, files, outputs, put_back, trained, untrained
from tests.victims import TRAINING, VALIDATING, calls_of, command, file_changes, leftovers, lines_of, run, spread, victim

pytestmark = pytest.mark.slow

KILL = signal.SIGKILL
KILLED = 128 + KILL


@pytest.mark.parametrize(
    ("words", "stands"),
    [
        (("fetch", "base"), False),
        (("fetch", "dataset"), True),
        (("encode", "images"), False),
        (("encode", "images"), True),
        (("encode", "captions"), False),
    ],
    ids=["base", "dataset-over-another", "images", "images-over-another", "captions"],
)
def test_a_stage_killed_at_any_file_gives_the_same_bytes(project, words, stands) -> None:
    data, kept = project.folder / "data", project.folder / "kept"
    project.fetch_and_encode()
    shutil.rmtree(data / "work")  # else there is nothing to encode
    after = files(data)
    if words[0] == "encode" and not stands:  # as DVC removes the outputs of a stage before it runs
        for name in ("latents",) if words[1] == "images" else ("embeds", "validation-prompts"):
            shutil.rmtree(data / name)
    elif not stands:
        shutil.rmtree(data)
        data.mkdir()
    data.rename(kept)
    shutil.copytree(kept, data)
    alone = victim(command(*words), file_changes(data))
    assert alone.code == 0, alone.said
    wanted = outputs(data)
    assert all(after[name] == content for name, content in wanted.items())
    for event in sorted({*spread(alone.events, 3), *range(alone.events - 8, alone.events, 2)}):
        put_back(data, kept)
        assert victim(command(*words), file_changes(data), {event: KILL}).code == KILLED
        again = victim(command(*words))
        assert again.code == 0, f"after a kill at event {event} of {alone.events}: {again.said}"
        assert outputs(data) == wanted, f"after a kill at event {event} of {alone.events}"
        assert not leftovers(data)


@pytest.mark.parametrize(
    ("what", "raw", "model", "before", "outs"),
    [
        ("images", "raw/images", "Encoder", 0, ["latents"]),
        ("captions", "embeds", "CLIPTextModel", 1, ["embeds", "validation-prompts"]),  # the empty prompt is encoded first
    ],
)
def test_finished_shards_are_not_encoded_again(project, what, raw, model, before, outs) -> None:
    project.fetch_and_encode()
    data, batch_size = project.folder / "data", project.params["runtime"]["encode_batch_size"]
    rows = read_manifest(data / raw).files
    counts = [row.count for split in SPLITS for row in rows if split_of_shard(row.name) == split]

    def calls(counts: list[int]) -> int:
        """Returns the batches of some shards: of images, one may span two shards."""
        return -(-sum(counts) // batch_size) if what == "images" else sum(-(-count // batch_size) for count in counts)

    shutil.rmtree(data / "work")
    alone = victim(command("encode", what), calls_of(model))
    wanted = outputs(data)
    assert alone.events >= before + calls(counts)
    for call in range(1, alone.events + 1):
        for out in [*outs, "work"]:
            shutil.rmtree(data / out, ignore_errors=True)
        assert victim(command("encode", what), calls_of(model), {call: KILL}).code == KILLED
        again = victim(command("encode", what), calls_of(model))
        ended = [n for n in range(1, len(counts) + 1) if calls(counts[:n]) < call - before]
        finished = max(0, len(ended) - 1)  # the last one may be with the thread that writes it
        assert again.events <= alone.events - calls(counts) + calls(counts[finished:]), f"after a kill at call {call}"
        assert outputs(data) == wanted


@pytest.mark.parametrize("watched", ["files", "lines"])
def test_a_killed_save_leaves_a_complete_checkpoint_or_none(tmp_path, watched) -> None:
    work, kept = tmp_path / "work", tmp_path / "kept"
    watch = file_changes(work) if watched == "files" else lines_of(checkpoint)

    def save(step: int) -> None:
        tensors = {name: {"w": torch.full((3,), float(step))} for name in ("unet", "ema", "optimizer")}
        checkpoint.save(work, Checkpoint(step, 1, 1, tensors), keep=1)

    work.mkdir()
    save(5)
    shutil.copytree(work, kept)
    alone = victim(lambda: save(10), watch)
    assert alone.events > 5
    found = []
    for event in spread(alone.events, 20):
        put_back(work, kept)
        assert victim(lambda: save(10), watch, {event: KILL}).code == KILLED
        newest = checkpoint.load_newest(work, discard_damaged=True)
        assert newest is not None
        found.append(newest.step)
        assert all((tensors["w"] == found[-1]).all() for tensors in newest.tensors.values())
        checkpoint.make_room(work, restart=False)
        save(15)
        assert [path.name for path in work.iterdir()] == ["step-00000015"]
    assert found == sorted(found)
    assert set(found) == {5, 10}


def test_a_killed_make_room_is_completed_by_the_next_run(tmp_path) -> None:
    work, other, kept = tmp_path / "all/this", tmp_path / "all/other", tmp_path / "kept"
    for folder in (work, other):
        (folder / "validation-0").mkdir(parents=True)
        checkpoint.save(folder, Checkpoint(5, 1, 1, {"unet": {"w": torch.ones(3)}}), keep=1)
        checkpoint.finish(folder)
    shutil.copytree(work.parent, kept)

    def make_room() -> None:
        checkpoint.make_room(work, restart=False)

    for event in range(1, victim(make_room, file_changes(work.parent)).events + 1):
        put_back(work.parent, kept)
        assert victim(make_room, file_changes(work.parent), {event: KILL}).code == KILLED
        make_room()
        assert list(work.parent.iterdir()) == [work], f"after a kill at event {event}"
        assert checkpoint.load_newest(work) is not None


def test_a_killed_export_is_repeated(ready) -> None:
    data, kept = ready.folder / "data", ready.folder / "kept"
    run("train")
    wanted = trained(ready)
    data.rename(kept)
    shutil.copytree(kept, data)
    outs = file_changes(data / "model", data / "validation.", data / "reports")
    alone = victim(command("train"), outs)
    assert alone.code == 0
    for event in spread(alone.events, 6):
        put_back(data, kept)
        assert victim(command("train"), outs, {event: KILL}).code == KILLED
        assert "resuming after step 12" in run("train")
        assert trained(ready) == wanted, f"after a kill at event {event} of {alone.events}"
        assert not leftovers(data)


def test_training_killed_at_any_file_gives_the_same_bits(ready) -> None:
    data = ready.folder / "data"
    ready.params["runtime"]["checkpoint_every_seconds"] = 1e-9  # at every step
    ready.params["train"]["steps"] = 6
    ready.write()
    alone = victim(command("train"), file_changes(data))
    assert alone.code == 0
    wanted = trained(ready)
    for event in spread(alone.events, 6):
        untrained(ready)
        assert victim(command("train"), file_changes(data), {event: KILL}).code == KILLED
        run("train")
        assert trained(ready) == wanted, f"after a kill at event {event} of {alone.events}"
        assert not leftovers(data)


@pytest.mark.parametrize("section", [{}, LORA], ids=["unet", "lora"])
def test_training_killed_repeatedly_gives_the_same_bits(ready, section) -> None:
    ready.params["train"] |= section
    ready.write()
    run("train")
    wanted = trained(ready)
    steps = [row.split(b",")[0] for row in wanted["reports/train"]["history.csv"].splitlines()[1:]]
    assert steps == [b"%d" % step for step in range(1, 13)]
    untrained(ready)
    ready.params["runtime"]["checkpoint_every_seconds"] = 1e-9
    ready.write()
    for resumed, watch, event in [
        (0, TRAINING, 5),  # epoch 1, between the two micro-batches of step 3
        (2, TRAINING, 2 * 5 + 1),  # epoch 2, between those of step 8
        (7, VALIDATING, 1),  # while step 8 is validated
        (8, VALIDATING, 6),  # the same, while the UNet has the EMA weights
        (8, TRAINING, 2),  # epoch 3, before the optimizer takes step 9
    ]:
        ended = victim(command("train"), watch, {event: KILL})
        assert ended.code == KILLED
        assert ("resuming" in ended.said) == bool(resumed)
        assert not resumed or f"resuming after step {resumed} " in ended.said
    run("train")
    assert trained(ready) == wanted


def test_training_killed_between_checkpoints_gives_the_same_bits(ready) -> None:
    run("train")
    wanted = trained(ready)
    untrained(ready)
    assert victim(command("train"), TRAINING, {13: KILL}).code == KILLED
    stopped = victim(command("train"), TRAINING, {11: signal.SIGTERM})  # in step 6, which is given up
    assert "stopped after step 5 of 12" in stopped.said
    for _ in range(2):
        ended = victim(command("train"), TRAINING, {9: KILL})  # in step 10, twice
        assert ended.code == KILLED
        assert "resuming after step 5 " in ended.said
    run("train")
    assert trained(ready) == wanted
