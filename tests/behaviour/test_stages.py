"""Runs the stages on a tiny checkpoint with random weights."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from stages import encode, fetch
from t2i.data.chance import derived_seed
from t2i.data.index import Index
from t2i.data.reader import Reader
from t2i.model.families.stable_diffusion import Family
from tests.projects import LORA, ROOT, Project, files, untrained

pytestmark = pytest.mark.slow


def weights(project: Project, model: str = "data/model") -> dict[str, torch.Tensor]:
    return load_file(project.folder / model / "unet" / "diffusion_pytorch_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run_train(project: Project, *, until_step: int | None = None) -> tuple[int, str]:
    """Runs the stage as a process; with `until_step`, sends SIGTERM once the output reports that step."""
    project.write()
    child = subprocess.Popen([sys.executable, "-m", "stages.train"], cwd=project.folder, stderr=subprocess.PIPE)
    assert isinstance(child.stderr, io.BufferedReader)
    said = b""
    while chunk := child.stderr.read1(4096):
        said += chunk
        if until_step is not None and any(int(step) >= until_step for step in re.findall(rb"(\d+)/\d+ \[", said)):
            child.send_signal(signal.SIGTERM)
            until_step = None
    return child.wait(), said.decode()


def test_the_pipeline_writes_a_diffusers_model_and_metrics(project) -> None:
    project.fetch_and_encode()
    project.train()
    project.evaluate()
    metrics = project.json("data/reports/evaluate/metrics.json")
    for name in ("heldout_loss", "cmmd", "prompt_retrieval", "clip_score"):
        assert {name, f"{name}_base"} <= metrics.keys()
    assert {"cmmd_floor", "prompt_retrieval_real"} <= metrics.keys()
    assert (project.folder / "data/reports/train/history.csv").read_text().count("\n") == 1 + 3
    assert {"kid", "overfit_gap", "copy_rate", "retention_retrieval"} <= project.json(
        "data/reports/evaluate/intervals.json"
    ).keys()
    with Image.open(project.folder / "data/pictures/grid.png") as grid:
        assert grid.width > 3 * 128
    pipeline = StableDiffusionPipeline.from_pretrained(project.folder / "data/model", use_safetensors=True)
    assert pipeline("square 1", num_inference_steps=1, height=32, width=32).images[0].size == (32, 32)
    assert not same(weights(project), weights(project, "data/base"))
    assert {path.suffix for path in (project.folder / "data/model").rglob("*") if path.is_file()} <= {
        ".safetensors",
        ".json",
        ".md",
        ".png",
        ".txt",
    }
    card = (project.folder / "data/model/README.md").read_text()
    assert '"learning_rate": 0.001' in card


def test_two_runs_give_the_same_bytes(project) -> None:
    project.fetch_and_encode()
    project.train()
    project.evaluate()
    data, before = project.folder / "data", project.folder / "before"
    data.rename(before)
    again = """
import torch
from stages import encode, evaluate, fetch, train
torch.set_num_threads(1)
fetch.base(), fetch.dataset(), encode.images(), encode.captions(), train.main()
evaluate.base(), evaluate.model(), evaluate.report()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", again], cwd=project.folder, env=environment, check=True)
    shutil.rmtree(before / "work")
    assert len(list((data / "work").glob("encode-*/complete"))) == 2
    shutil.rmtree(data / "work")
    assert files(data).keys() == files(before).keys()
    for name, content in files(data).items():
        assert content == (before / name).read_bytes(), name


def test_a_new_caption_does_not_change_the_image_shards(project) -> None:
    fetch.dataset()
    before = files(project.folder / "data/raw")
    metadata = project.folder / "images" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("square 3", "a corrected square"))
    fetch.dataset()
    after = files(project.folder / "data/raw")
    assert {name for name in after if after[name] != before[name]} == {"captions.jsonl", "dataset.json"}


def test_all_views_are_stored_and_heldout_records_have_one(project) -> None:
    project.params["encode"]["images"] |= {"crop": {"name": "random", "views": 3}, "flip": True}
    project.write()
    project.fetch_and_encode()
    latents, reader = project.folder / "data/latents", Reader()
    for split, count in (("train", 6), ("heldout", 1)):
        for member in Index(latents, split):
            stored = reader.tensors(member)
            assert stored["moments"].shape == (count, 8, 16, 16)
            assert stored["moments"].dtype == torch.float16
            assert stored["flipped"].tolist() == [0, 1] * (count // 2) or count == 1
            assert stored["original_size"].tolist() == [[32, 40]] * count
            assert stored["crop"][:, 0].tolist() == [0] * count
            assert (stored["crop"][:, 1] >= 0).all()
            assert (stored["crop"][:, 1] <= 8).all()


def test_stored_moments_match_the_vae(project) -> None:
    project.fetch_and_encode()
    family = Family(project.folder / "data/base")
    vae, reader = family.load_vae("cpu"), Reader()
    member = Index(project.folder / "data/latents", "heldout")[0]
    with tarfile.open(project.folder / "data/raw/images/heldout-00000.tar") as tar:
        content = tar.extractfile(f"{member.key}.png")
        assert content is not None
        image = Image.open(content).convert("RGB").crop((4, 0, 36, 32))
    pixels = torch.tensor(list(image.get_flattened_data())).view(32, 32, 3).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(
        reader.tensors(member)["moments"].float(), family.encode_pixels(vae, pixels), rtol=2e-3, atol=2e-3
    )


def test_stored_embeddings_match_the_text_encoder(project) -> None:
    metadata = project.folder / "images" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"square 3"', '["square 3", "the third"]'))
    project.fetch_and_encode()
    captions = {
        row["key"]: row for row in map(json.loads, (project.folder / "data/raw/captions.jsonl").read_text().splitlines())
    }
    family, reader = Family(project.folder / "data/base"), Reader()
    text = family.load_text("cpu")
    counts = set()
    for split in ("train", "heldout"):
        for member in Index(project.folder / "data/embeds", split):
            stored = reader.tensors(member)["encoder_hidden_states"]
            counts.add(len(stored))
            wanted = family.encode_prompts(text, captions[member.key]["captions"])["encoder_hidden_states"]
            torch.testing.assert_close(stored.float(), wanted, rtol=2e-3, atol=2e-3)
    assert counts == {1, 2}
    empty = load_file(project.folder / "data/embeds/empty.safetensors")["encoder_hidden_states"]
    torch.testing.assert_close(empty.float(), family.encode_prompts(text, [""])["encoder_hidden_states"], rtol=2e-3, atol=2e-3)


def test_a_vae_with_a_low_psnr_fails_the_stage(project) -> None:
    project.params["encode"]["images"]["min_psnr"] = 60.0
    project.write()
    fetch.base()
    fetch.dataset()
    with pytest.raises(ValueError, match=r"PSNR of .* dB, wanted .*`encode.images.min_psnr` 60.0"):
        encode.images()
    assert not (project.folder / "data/latents").exists()


def test_validation_does_not_change_training(project) -> None:
    project.fetch_and_encode()
    project.train()
    trained, validated = weights(project), files(project.folder / "data/validation")
    assert sorted(validated) == [f"step-{step:08d}.safetensors" for step in (0, 4, 6)]
    (work,) = (project.folder / "data/work").glob("train-*")
    shutil.rmtree(work / "step-00000006")
    shutil.rmtree(next(work.glob("validation-*")))
    project.train()  # from the start: no checkpoint is left
    assert files(project.folder / "data/validation") == validated
    (project.folder / "data/work").rename(project.folder / "before")
    project.params["runtime"]["validation"]["every_steps"] = 1
    project.train()
    assert same(weights(project), trained)
    rows = (project.folder / "data/reports/train/validation.csv").read_text().splitlines()
    assert len(rows) == 1 + 7


def test_a_new_validation_prompt_does_not_retrain(project, capsys) -> None:
    project.fetch_and_encode()
    project.train()
    trained, measured = weights(project), files(project.folder / "data/embeds")
    project.params["encode"]["captions"]["validation_prompts"] = ["square 5"]
    project.write()
    encode.captions()
    assert files(project.folder / "data/embeds") == measured
    capsys.readouterr()
    project.train()
    assert "resuming after step 6" in capsys.readouterr().err
    assert same(weights(project), trained)
    drawn = load_file(project.folder / "data/validation/step-00000006.safetensors")["latents"]
    assert len(drawn) == 1


def test_validation_pictures_match_the_exported_pipeline(project) -> None:
    project.fetch_and_encode()
    project.train()
    family = Family(project.folder / "data/model")
    prompts = project.params["encode"]["captions"]["validation_prompts"]
    noise = torch.stack(
        [
            torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(derived_seed(0, "validation", number)))
            for number in range(len(prompts))
        ]
    )
    pipeline = StableDiffusionPipeline.from_pretrained(project.folder / "data/model", use_safetensors=True)
    latents = pipeline(
        prompts, latents=noise, num_inference_steps=2, guidance_scale=1.5, height=32, width=32, output_type="latent"
    ).images
    drawn = load_file(project.folder / "data/validation/step-00000006.safetensors")["latents"]
    torch.testing.assert_close(drawn, latents, rtol=1e-2, atol=1e-2)  # the cached embeddings are float16
    assert family.decode_latents(family.load_vae("cpu"), drawn).shape == (2, 3, 32, 32)


def test_accumulation_changes_only_rounding(project) -> None:
    project.fetch_and_encode()
    project.train()
    whole = project.json("data/reports/train/metrics.json")
    project.params["runtime"]["micro_batch_size"] = 3  # 4 images in micro-batches of 3 and 1
    (project.folder / "data/work").rename(project.folder / "before")
    project.train()
    parts = project.json("data/reports/train/metrics.json")
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_the_environment_does_not_change_the_result(project, monkeypatch) -> None:
    project.fetch_and_encode()
    project.train()
    before = weights(project)
    untrained(project)
    for name in ("GRADIENT_ACCUMULATION_STEPS=4", "MIXED_PRECISION=bf16", "DYNAMO_BACKEND=EAGER", "USE_FSDP=true"):
        monkeypatch.setenv(*f"ACCELERATE_{name}".split("="))
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "RANK"):  # left by a launcher of MPI or of another job
        monkeypatch.setenv(name, "2")
    project.train()
    assert same(weights(project), before)


@pytest.mark.parametrize(("name", "value"), [("gradient_checkpointing", True), ("attention", "eager")])
def test_checkpointing_and_attention_change_only_rounding(project, name, value) -> None:
    project.fetch_and_encode()
    project.train()
    plain = weights(project)
    (project.folder / "data/work").rename(project.folder / "before")
    project.params["runtime"][name] = value
    project.train()
    for key, weight in weights(project).items():
        torch.testing.assert_close(weight, plain[key], rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_resumes_bit_for_bit(project, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    project.fetch_and_encode()
    project.params["train"] |= {"steps": 120}
    code, _ = run_train(project)
    assert code == 0
    unbroken, history = weights(project), (project.folder / "data/reports/train/history.csv").read_bytes()
    (project.folder / "data/work").rename(project.folder / "before")
    (project.folder / "data/model").rename(project.folder / "before/model")
    for until_step in (3, 40):
        code, said = run_train(project, until_step=until_step)
        assert code == 143, said
        assert "same command" in said
        assert not (project.folder / "data/model").exists()
    code, said = run_train(project)
    assert code == 0
    assert "resuming after step" in said
    assert same(weights(project), unbroken)
    assert (project.folder / "data/reports/train/history.csv").read_bytes() == history


WINDOWS = {"order": {"name": "windows", "shards": 2}}


@pytest.mark.parametrize("section", [{}, LORA, WINDOWS], ids=["unet", "lora", "windows"])
def test_two_processes_give_the_losses_of_one(project, monkeypatch, section) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    project.params["train"] |= {"steps": 20, "batch_size": 6} | section
    project.params["runtime"]["log_every_steps"] = 1
    project.write()
    project.fetch_and_encode()
    losses = []
    for processes in (1, 2):
        project.params["runtime"]["processes"] = processes
        code, said = run_train(project)
        assert code == 0, said
        rows = (project.folder / "data/reports/train/history.csv").read_text().splitlines()[1:]
        losses.append([float(row.split(",")[1]) for row in rows])
        (project.folder / "data/work").rename(project.folder / f"work-{processes}")
    assert len(losses[0]) == 20
    assert losses[1] == pytest.approx(losses[0], rel=1.1e-5)  # history.csv has six digits


def test_a_second_run_names_the_process_with_the_lock(project, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    project.fetch_and_encode()
    project.params["train"]["steps"] = 100_000
    project.write()
    first = subprocess.Popen([sys.executable, "-m", "stages.train"], cwd=project.folder, stderr=subprocess.DEVNULL)
    try:
        while not list(project.folder.glob("data/work/train-*/lock")) and first.poll() is None:
            time.sleep(0.1)
        time.sleep(0.5)
        second = subprocess.run([sys.executable, "-m", "stages.train"], cwd=project.folder, capture_output=True, text=True)
        assert second.returncode == 1
        assert f"process {first.pid}" in second.stderr
    finally:
        first.send_signal(signal.SIGINT)
        assert first.wait() == 130


def test_bf16_trains_and_fp16_is_refused_on_a_cpu(project) -> None:
    project.fetch_and_encode()
    project.params["train"]["precision"] = "bf16"
    project.train()
    assert project.json("data/reports/train/metrics.json")["loss"] < 10
    assert {weight.dtype for weight in weights(project).values()} == {torch.float32}
    project.params["train"]["precision"] = "fp16"
    with pytest.raises(ValueError, match=r"`train.precision` fp16 .* bf16 or fp32"):
        project.train()


def test_only_the_trainable_parameters_change(project) -> None:
    project.fetch_and_encode()
    project.params["train"]["trainable"] = r"^conv_out\.|\.attn2\."
    project.train()
    before, after = weights(project, "data/base"), weights(project)
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in after if name.startswith("conv_out.") or ".attn2." in name}
    project.params["train"]["trainable"] = "lora"
    with pytest.raises(ValueError, match=r"`train.trainable` is 'lora'.* begin with conv_in"):
        project.train()


def test_random_weights_depend_on_the_seed(project, monkeypatch) -> None:
    project.fetch_and_encode()
    project.params["train"] |= {"init": "random", "steps": 1, "warmup_steps": 0}
    project.train()
    first = weights(project)
    monkeypatch.setenv("T2I_RESUME", "never")
    project.train()
    assert same(weights(project), first)
    project.params["train"]["seed"] = 1
    project.train()
    assert not same(weights(project), first)


def test_epochs_are_converted_to_steps(project) -> None:
    project.fetch_and_encode()
    records = len(Index(project.folder / "data/latents", "train"))
    project.params["train"] |= {"steps": None, "epochs": 2}
    project.train()
    assert project.json("data/reports/train/metrics.json")["steps"] == -(-2 * records // 4)


def test_a_run_that_taught_nothing_says_so(ready, capfd) -> None:
    ready.params["train"] |= {"learning_rate": 1e-30, "steps": 2, "warmup_steps": 0}
    ready.train()
    assert "note: the run taught nothing" in capfd.readouterr().err
    ready.params["train"]["learning_rate"] = 1e-5
    ready.train()
    assert "taught nothing" not in capfd.readouterr().err


def test_training_lowers_the_heldout_loss(project) -> None:
    project.params["train"] |= {"steps": 150, "learning_rate": 3e-3, "batch_size": 8}
    project.write()
    project.fetch_and_encode()
    project.train()
    project.evaluate()
    metrics = project.json("data/reports/evaluate/metrics.json")
    assert metrics["heldout_loss"] < 0.9 * metrics["heldout_loss_base"]


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "clip"])
def test_pickled_weights_are_refused(project, tiny_base, part, suffix) -> None:
    other = project.folder / "pickled"
    shutil.copytree(tiny_base, other)
    (weights,) = (other / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(suffix))
    project.params["base"] |= {"local": str(other), "clip": str(other / "clip")}
    project.write()
    said = rf"{part}: wanted {weights.stem}.safetensors, found {weights.stem}{suffix} .*`model.save_pretrained\("
    with pytest.raises(ValueError, match=said):
        fetch.base()
    assert not (project.folder / "data/base").exists()


def test_a_single_file_that_is_a_pickle_is_refused(project) -> None:
    (project.folder / "single").mkdir()
    (project.folder / "single/v1-5.ckpt").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    project.params["base"]["local"] = str(project.folder / "single")
    project.write()
    with pytest.raises(ValueError, match=r"v1-5.ckpt: is a pickle, .*\.safetensors file"):
        fetch.base()
