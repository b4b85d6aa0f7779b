"""The folder that `t2i publish` writes, made from a run that DVC recorded."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from ruamel.yaml import YAML

from stages import tools
from t2i.data.digests import sha256_of
from t2i.tools.publish import publish_to_folder, publish_to_hub
from tests import tiny
from tests.projects import ADAPTER, ROOT, Project, files
from tests.writable_hub import receiving

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("publish")]

MARKER = "Tr4ceOfThisMachine"
TOKEN = "hf_thisTokenIsToBeFoundNowhere"


def git(folder: Path, *words: str) -> str:
    who = {f"GIT_{who}_{what}": f"{MARKER}@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    ran = subprocess.run(["git", *words], cwd=folder, env=os.environ | who, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A checkout below a folder with the marker in its name: it has run all stages, DVC and git have recorded it."""
    folder = tmp_path_factory.mktemp(MARKER) / "checkout"
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if name.startswith(("t2i/", "stages/", "presets/", ".dvc", "dvc.yaml", ".gitignore", "data/.gitignore")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    shutil.copytree(tiny_base, folder / "base/tiny")
    (folder / "requirements.txt").touch()
    images = tiny.make_images(folder.parent / "photos", 24)
    project = Project(folder, Path("base/tiny"))
    project.params["fetch"]["local"] = str(images)  # an absolute path, which is private
    project.write()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project.fetch_and_encode()
        project.train()
        project.evaluate()
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "images and parameters")
    dvc = [sys.executable, "-m", "dvc", "commit", "-f", "-q"]
    subprocess.run(dvc, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(folder)})
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first run")
    return folder


@pytest.fixture
def checkout(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that checkout, which is the current folder; the marker is also the name of the user."""
    folder = tmp_path / MARKER / "copy"
    shutil.copytree(ran, folder)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / MARKER / "home"))
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, MARKER)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def out(checkout: Path) -> Path:
    return checkout.parents[1] / "out"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_folder_has_the_model_and_what_made_it(checkout, out) -> None:
    publish_to_folder(out, None)
    published, model = files(out), files(checkout / "data/model")
    model = {name: content for name, content in model.items() if not name.startswith("pictures/")}
    assert published.keys() - model.keys() == {
        "digests.json",
        "params.yaml",
        "pictures/grid.png",
        *(f"pictures/sample-{number}.png" for number in (1, 2, 3, 4)),
        "reports/intervals.json",
        "reports/metrics.json",
    }
    assert {name for name in model if published[name] != model[name]} == {"README.md"}
    for name in ("metrics.json", "intervals.json"):
        assert published[f"reports/{name}"] == (checkout / "data/reports/evaluate" / name).read_bytes()
    ours, theirs = (YAML(typ="safe").load(path.read_text()) for path in (Path("params.yaml"), out / "params.yaml"))
    assert theirs["fetch"].pop("local") == "photos"
    assert ours["fetch"].pop("local").endswith(f"{MARKER}0/photos")
    assert theirs == ours


def test_nothing_names_the_machine_or_its_user(checkout, out, capfd, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["t2i", "publish", "--to", str(out)])
    with pytest.raises(SystemExit) as ended:
        tools.main()
    assert not ended.value.code, capfd.readouterr().err
    for name, content in files(out).items():
        for secret in (MARKER, TOKEN, str(checkout), str(Path.home()), "/tmp/"):
            assert secret.encode() not in content, (name, secret)
    for picture in out.rglob("*.png"):
        with Image.open(picture) as image:
            assert image.info == {}


def test_a_path_left_in_a_comment_is_refused_by_name(checkout, out) -> None:
    edit(checkout / "params.yaml", "base:", f"# see {checkout}/notes\nbase:")
    with pytest.raises(ValueError, match=rf"^params\.yaml: .*{MARKER}/copy"):
        publish_to_folder(out, None)
    assert not out.exists()


def test_the_card_is_valid_and_its_links_lead_somewhere(checkout, out) -> None:
    publish_to_folder(out, None)
    card = ModelCard(card_of(out), ignore_metadata_errors=False)
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("unknown", "diffusers", "text-to-image")
    assert "base_model" not in card.data.to_dict()  # no name on the Hub
    metrics = json.loads((out / "reports/metrics.json").read_text())
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["cmmd"] == metrics["cmmd"]
    assert len(results) == 9
    links = re.findall(r"\]\(([^)]+)\)", card.text) + [one["output"]["url"] for one in card.data.to_dict()["widget"]]
    assert len(links) > 8
    assert [link for link in links if not (out / link).is_file()] == []


def test_the_code_on_the_card_draws_an_image(checkout, out, monkeypatch) -> None:
    publish_to_folder(out, None)
    (code,) = re.findall(r"```python\n(.*?)```", card_of(out), re.S)
    monkeypatch.chdir(out.parent)
    exec(code.replace("path/to/this/folder", "out"), {})
    with Image.open("image.png") as image:
        assert image.size == (32, 32)


def test_the_table_has_each_metric_of_both_models(checkout, out) -> None:
    publish_to_folder(out, None)
    metrics, intervals = (json.loads((out / f"reports/{name}.json").read_text()) for name in ("metrics", "intervals"))
    rows = {
        row[0]: row for row in re.findall(r"^\| `(\w+)` \| (\w+) \| (\S+) \((.*?)\) \| (\S+) \((.*?)\) \|", card_of(out), re.M)
    }
    assert len(rows) == 9
    assert {name for name, row in rows.items() if row[1] == "higher"} == {
        "prompt_retrieval",
        "clip_score",
        "retention_retrieval",
    }
    for name, _, base, base_interval, model, interval in rows.values():
        for shown, between, of in ((base, base_interval, f"{name}_base"), (model, interval, name)):
            wanted = [metrics[of], *intervals[of]]
            numbers = [float(one.replace(",", "")) for one in (shown, *between.split(" to "))]
            assert numbers == pytest.approx(wanted, rel=6e-3, abs=1e-9), name


def test_digests_are_those_of_the_files_and_of_the_run(checkout, out) -> None:
    publish_to_folder(out, None)
    digests = json.loads((out / "digests.json").read_text())
    assert digests["files"] == {name: sha256_of(out / name) for name in files(out) if name != "digests.json"}
    assert (digests["commit"], digests["uncommitted_changes"]) == (git(checkout, "rev-parse", "HEAD"), [])
    assert f"git checkout {digests['commit']}" in card_of(out)
    assert digests["shards"]["latents"]["train-00000.tar"] == sha256_of(checkout / "data/latents/train-00000.tar")
    assert digests["code"]["t2i/train/ema.py"] == sha256_of(checkout / "t2i/train/ema.py")
    locked = YAML(typ="safe").load((checkout / "dvc.lock").read_text())["stages"]["train"]["outs"]
    assert (
        digests["stages"]["train"]["outs"].items()
        >= {one["path"]: one["md5"] for one in locked if "model" in one["path"]}.items()
    )
    assert digests["dataset"]["captions"] in card_of(out)


def test_two_publications_of_a_run_are_equal(checkout, out) -> None:
    publish_to_folder(out, None)
    before = files(out)
    publish_to_folder(out, None)
    assert files(out) == before
    publish_to_folder(out.with_name("another"), None)
    assert files(out.with_name("another")) == before


def test_uncommitted_changes_are_stated(checkout, out, capfd) -> None:
    (checkout / "t2i/tools/new.py").write_text("")
    publish_to_folder(out, None)
    assert "note: uncommitted changes (t2i/tools/new.py)" in capfd.readouterr().err
    assert "**uncommitted changes** in `t2i/tools/new.py`" in card_of(out)
    shutil.rmtree(checkout / ".git")
    subprocess.run([sys.executable, "-m", "dvc", "config", "core.no_scm", "true"], check=True)
    publish_to_folder(out, None)
    assert "no git checkout" in capfd.readouterr().err
    assert "git checkout " not in card_of(out)


def test_unknown_licences_are_stated_unless_one_is_chosen(checkout, out, capfd) -> None:
    publish_to_folder(out, None)
    notes = capfd.readouterr().err
    assert notes.count("the licence of the ") == 2
    assert "--license" in notes
    assert card_of(out).count("**not known**") == 3
    publish_to_folder(out, "mit")
    assert "--license" not in capfd.readouterr().err
    assert "license: mit\n" in card_of(out)
    assert card_of(out).count("**not known**") == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: edit(Path("params.yaml"), "learning_rate: 0.001", "learning_rate: 0.002"), "`train.learning_rate` is 0.002"),
        (lambda: edit(Path("params.yaml"), "prompts: 6", "prompts: 5"), "`evaluate.prompts` is 5, but was 6"),
        (lambda: shutil.rmtree("data/model"), "data/model: missing"),
        (lambda: shutil.rmtree("data/pictures"), "data/pictures: missing"),
        (lambda: shutil.rmtree("data/samples"), "data/samples/base: missing"),
        (lambda: Path("data/model/unet/more").touch(), "data/model: not what stage train wrote"),
        (
            lambda: edit(Path("data/reports/evaluate/metrics.json"), "cmmd", "cmme"),
            "metrics.json: not what stage evaluate-model",
        ),
        (lambda: edit(Path("t2i/train/ema.py"), "\n", "\n\n"), "t2i/train: changed after stage train ran"),
        (lambda: edit(Path("dvc.yaml"), "stages.train", "stages.train --help"), "the command of stage train changed"),
        (lambda: Path("dvc.lock").unlink(), "dvc.lock: missing"),
        (lambda: edit(Path("dvc.lock"), "  train:", "  trained:"), "stage train has not run"),
    ],
)
def test_an_unfinished_or_stale_run_is_refused(checkout, out, change, said) -> None:
    change()
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        publish_to_folder(out, None)
    assert "`dvc repro`" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not out.exists()


def test_a_running_dvc_is_refused(checkout, out) -> None:
    from dvc.repo import Repo

    with Repo() as repo, repo.lock, pytest.raises(ValueError, match="a dvc command is running"):
        publish_to_folder(out, None)


@pytest.mark.parametrize("named", ["notes.txt", ".git/config"])
def test_a_folder_with_other_files_is_not_replaced(checkout, out, named) -> None:
    (out / named).parent.mkdir(parents=True)
    (out / named).write_text("mine")
    with pytest.raises(ValueError, match="not a folder that this command wrote"):
        publish_to_folder(out, None)
    (out / named).unlink()
    shutil.rmtree(out)
    publish_to_folder(out, None)
    (out / named).parent.mkdir(exist_ok=True)
    (out / named).write_text("mine")
    with pytest.raises(ValueError, match=rf"{named}: would be deleted"):
        publish_to_folder(out, None)
    assert (out / named).read_text() == "mine"


def test_samples_that_copy_a_training_image_are_not_published(checkout, out) -> None:
    path = checkout / "data/reports/evaluate/nearest.json"
    rows = json.loads(path.read_text())
    path.chmod(0o644)
    path.write_text(json.dumps([row | {"copied": number > 0} for number, row in enumerate(rows)]))
    subprocess.run([sys.executable, "-m", "dvc", "commit", "-f", "-q", "evaluate-model", "evaluate-report"], check=True)
    publish_to_folder(out, None)
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["grid.png", "sample-1.png"]


def test_an_adapter_is_published_with_its_base(checkout, out) -> None:
    model = checkout / "data/model"
    weights, source = model / "unet/diffusion_pytorch_model.safetensors", (model / "source.json").read_text()
    weights = weights.rename(checkout / "data/pytorch_lora_weights.safetensors")
    shutil.rmtree(model)
    model.mkdir()
    weights.rename(model / weights.name)
    (model / "source.json").write_text(source)
    (model / "adapter.json").write_text(json.dumps(ADAPTER))
    stages = ["train", "evaluate-model", "evaluate-report"]
    subprocess.run([sys.executable, "-m", "dvc", "commit", "-f", "-q", *stages], check=True)
    publish_to_folder(out, "mit")
    said = ModelCard(card_of(out)).data.to_dict()
    assert "lora" in said["tags"]
    assert 'load_lora_weights("path/to/this/folder"' in card_of(out)
    assert f"`{sha256_of(out / weights.name)}`" in card_of(out)


def test_publish_uploads_to_the_hub(checkout, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys, "argv", ["t2i", "publish", "--hub", "someone/model", "--private", "--license", "mit"])
    with receiving(tmp_path, monkeypatch) as uploads:
        uploads.hub.token = TOKEN
        with pytest.raises(SystemExit) as ended:
            tools.main()
        said = capfd.readouterr()
        assert not ended.value.code, said.err
        sent = uploads.files("someone/model")
    assert "/someone/model/commit/" in said.out
    assert "private" in said.out
    assert uploads.hub.private == {"someone/model"}
    assert b'from_pretrained("someone/model"' in sent["README.md"]
    assert sent["unet/config.json"] == (checkout / "data/model/unet/config.json").read_bytes()
    assert [name for name, content in sent.items() if MARKER.encode() in content or TOKEN.encode() in content] == []
    assert TOKEN not in said.out + said.err
    assert not (checkout / "data/work/publish").exists()


def test_nothing_is_uploaded_from_a_stale_run(checkout, tmp_path, monkeypatch) -> None:
    edit(checkout / "params.yaml", "learning_rate: 0.001", "learning_rate: 0.002")
    with receiving(tmp_path, monkeypatch) as uploads:
        uploads.hub.token = TOKEN
        with pytest.raises(ValueError, match=r"train\.learning_rate"):
            publish_to_hub("someone/model", None, private=False)
        assert uploads.wrote() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--to FOLDER"),
        (["--to", "out", "--hub", "someone/model"], "--hub owner/name"),
        (["--to", "out", "--private"], "--private needs --hub"),
        (["--to", "out", "--license", "CC BY"], "cc-by-sa-4.0"),
    ],
)
def test_wrong_usage_ends_with_2(words, said, capfd, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["t2i", "publish", *words])
    with pytest.raises(SystemExit) as ended:
        tools.main()
    assert ended.value.code == 2
    assert said in " ".join(capfd.readouterr().err.replace("│", "").split())
