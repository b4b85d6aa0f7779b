import re

import pytest
import torch
from accelerate.state import AcceleratorState
from typer.testing import CliRunner

from stages import encode, fetch
from stages.tools import app
from t2i.data.footprint import shard_sizes
from t2i.data.manifest import read_manifest
from t2i.data.records import SPLITS
from t2i.data.storage import Folders
from t2i.model.families.stable_diffusion import Family
from t2i.tools.counts import fetched
from t2i.tools.memory import count_weights, state_bytes
from t2i.tools.probe import probe_encoders, probe_step
from t2i.tools.sections import load_sections
from t2i.tools.sizes import sizes_of
from t2i.train.ema import Ema
from t2i.train.optim import make_optimizer, trainable


def shown(*arguments: str) -> str:
    AcceleratorState._reset_state(reset_partial_state=True)  # as a new process finds it
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert done.exit_code == 0, done.exception
    return done.output


def planned(*arguments: str) -> dict[str, str]:
    return {line[:22].strip(): line[23:] for line in shown(*arguments).splitlines()}


@pytest.mark.parametrize("views", [1, 3])
def test_planned_bytes_equal_written_bytes(project, views) -> None:
    metadata = project.folder / "images" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"square 3"', '["square 3", "the third", "three"]'))
    project.params["encode"]["images"] |= {"crop": {"name": "random", "views": views}, "flip": views > 1}
    project.params["encode"]["captions"]["records_per_shard"] = 5
    project.write()
    fetch.base()
    fetch.dataset()
    sections = load_sections(project.folder / "params.yaml")
    encoders = probe_encoders(Family(project.folder / "data/base"), sections.runtime, (32, 32), "a square")
    dataset = fetched(project.folder / "data/raw", sections.encode_captions.records_per_shard, Folders())
    of_split = {split: sections.encode_images.count(split) for split in SPLITS}
    planned = sizes_of(dataset, of_split, encoders.moments, encoders.conditioning)
    encode.images()
    encode.captions()
    for name, of_set in (("latents", planned.latents), ("embeds", planned.embeds)):
        files = read_manifest(project.folder / "data" / name).files
        assert of_set == {split: shard_sizes(files, split) for split in SPLITS}


def test_a_plan_gives_counts_sizes_and_times(project) -> None:
    fetch.base()
    fetch.dataset()
    plan = planned()
    assert plan["records"] == "17 train, 7 held-out; 24 captions"
    assert re.fullmatch(r"[\d.]+ kB, [\d.]+ kB per record, in 4 shards of up to [\d.]+ kB", plan["moments"])
    assert re.search(r"all 3 shards, [\d.]+ kB", plan["window"])
    assert re.fullmatch(r"[\d.]+ kB per image, or [\d.]+ [kM]B per second .*", plan["reading"])
    assert re.match("pays: .* 24 images", plan["caching"])
    assert plan["steps"] == "6 of 4 images: 1.41 epochs"
    assert "K parameters" in plan["memory"] or "M parameters" in plan["memory"]
    for name in ("encode images", "encode captions", "train", "evaluate base", "evaluate model", "total"):
        assert re.fullmatch(r"about \d+ min \d\d s", plan[f"time, {name}"])
    assert not list((project.folder / "data").glob("latents*"))


def test_settings_are_checked_before_the_base_is_read(project) -> None:
    project.params["train"]["precision"] = "fp16"
    project.write()
    done = CliRunner().invoke(app, ["plan"])
    assert "`train.precision` fp16 needs a GPU" in str(done.exception)


def test_a_plan_works_before_the_dataset_is_fetched(project) -> None:
    fetch.base()
    project.params["fetch"]["max_heldout_records"] = 100
    project.write()
    plan = planned("--records", "100000")
    assert plan["records"] == "70,000 train, 100 held-out; 70,100 captions"
    assert re.search("in 8,763 shards", plan["moments"])
    assert "24 of them" in plan["caching"]
    assert "`fetch.max_train_records: 24`" in plan["caching"]


def test_a_plan_says_what_fetching_leaves_out(project) -> None:
    fetch.base()
    project.params["fetch"]["max_heldout_records"] = 100
    project.write()
    assert re.search("^ +29,900 are left out .*`fetch.max_heldout_records`", shown("--records", "100000"), re.MULTILINE)


def test_more_records_than_can_be_mapped_are_planned_too(project) -> None:
    fetch.base()
    plan = planned("--records", "10000000", "--captions", "3", "--parts", "64")
    assert plan["records"] == "7,000,000 train, 128 held-out; 21,000,384 captions"
    assert "`fetch.records_per_shard`" in plan["too many files"]
    assert plan["part, encode images"].startswith("at most 13,673 of 875,016 shards")
    assert plan["part, encode captions"].startswith("at most 13,673 of 875,016 shards")


def test_windows_need_a_part_of_the_set(project) -> None:
    fetch.base()
    project.params["train"]["order"] = {"name": "windows", "shards": 3}
    project.write()
    assert planned("--records", "1000")["window"].startswith("3 shards of moments and their embeddings, ")


def test_a_missing_input_names_the_command_that_makes_it(project) -> None:
    done = CliRunner().invoke(app, ["plan"])
    assert re.search("data/base: .*`t2i fetch base`", str(done.exception))
    fetch.base()
    done = CliRunner().invoke(app, ["plan"])
    assert re.search("data/raw: .*`t2i fetch dataset`.* --records", str(done.exception))


@pytest.mark.parametrize("pattern", ["", "conv_in"])
def test_planned_state_equals_the_state_after_a_step(project, tiny_base, pattern) -> None:
    sections = load_sections(project.folder / "params.yaml")
    unet = Family(tiny_base).load_unet(random=False)
    weights, trained = dict(unet.named_parameters()), trainable(unet, pattern)
    optimizer, ema = make_optimizer(trained.values(), sections.train.optimizer), Ema(trained, sections.train.ema, "cpu")
    for weight in trained.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    held = [*weights.values(), *(weight.grad for weight in trained.values()), *moments, *ema.shadow.values()]
    part, whole = count_weights(tiny_base / "unet", sections.train.adapter, pattern)
    assert (part, whole) == (
        sum(weight.numel() for weight in trained.values()),
        sum(weight.numel() for weight in weights.values()),
    )
    assert state_bytes(sections.train, sections.runtime, part, whole) == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_the_probed_step_trains(project, monkeypatch, micro_batch_size) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    project.params["runtime"]["micro_batch_size"] = micro_batch_size
    project.write()
    fetch.base()
    sections, family = load_sections(project.folder / "params.yaml"), Family(project.folder / "data/base")
    encoders = probe_encoders(family, sections.runtime, (32, 32), "a square")
    trained: list[int] = []
    step = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, *arguments: object) -> object:
        trained.append(sum(weight.grad is not None for group in self.param_groups for weight in group["params"]))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    assert probe_step(sections.train, sections.runtime, family, encoders, project.folder / "probe") > 0
    assert len(trained) > 1
    assert min(trained) == max(trained) > 0


def test_a_plan_for_another_base_than_the_fetched_one_is_refused(project) -> None:
    fetch.base()
    project.params["base"]["hub"] = "someone/something"
    project.write()
    done = CliRunner().invoke(app, ["plan", "--records", "10"])
    assert re.search("data/base: .*someone/something.*`t2i fetch base`", str(done.exception))
