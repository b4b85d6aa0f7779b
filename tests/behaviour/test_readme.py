"""The commands of README, typed as they stand there, in fresh clones, with a tiny base in place of Stable Diffusion."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.projects import ROOT, Project, files
from tests.writable_hub import receiving

pytestmark = pytest.mark.slow


def blocks(title: str) -> list[str]:
    """Returns the commands in a section of README, without their comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.M)
    (found,) = (part for part in section if part.startswith(title))
    shown = "\n".join(re.findall(r"^```sh\n(.*?)^```", found, re.M | re.S))
    return [re.sub(r"\s+# .*", "", line).strip() for line in shown.splitlines() if line]


class Checkout:
    """A clone of the repository, in which commands are typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": "1",
            **{f"GIT_{who}_{what}": "someone@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def type(self, line: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", line], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def stages_run(self, line: str) -> list[str]:
        return re.findall(r"^Running stage '([\w-]+)'", self.type(line), re.M)

    def shrink(self) -> None:
        """Writes a params.yaml for a tiny base and few images."""
        project = Project(self.folder, Path("base/tiny"))
        project.params["fetch"]["local"] = "data/local"
        project.params["train"]["learning_rate"] = 6e-3
        project.params["sweep"]["prompts"] = 2
        project.params["runtime"]["validation"]["every_steps"] = 100
        project.write()

    def put_images(self) -> None:
        """Puts images below data/local, as README says."""
        local = self.folder / "data/local"
        metadata = tiny.make_images(local / "photos", 16) / "metadata.jsonl"
        (local / "metadata.jsonl").write_text(metadata.read_text().replace('"0', '"photos/0'))
        metadata.unlink()

    def queue_ended(self) -> list[str]:
        """Waits for the queue; returns the names of its runs, all of which succeeded."""
        for _ in range(600):
            status = self.type("dvc queue status")
            if not re.search(r"Queued|Running", status):
                break
            time.sleep(1)
        rows = re.findall(r"^[0-9a-f]{7} +(\S+) .* (\w+)$", status, re.M)
        assert rows
        assert {state for _, state in rows} == {"Success"}, status
        return [name for name, _ in rows]


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A bare repository with what git tracks here, and a tiny base."""
    first = Checkout(tmp_path / "first")
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("base/"):
            (first.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, first.folder / name)
    tiny.make_base(first.folder / "base/tiny")
    first.shrink()
    first.type(f"git init -q && git add -A && git commit -qm first && git clone -q --bare . {tmp_path / 'origin.git'}")
    return tmp_path / "origin.git"


def clone(origin: Path, name: str) -> Checkout:
    subprocess.run(["git", "clone", "-q", origin, name], cwd=origin.parent, check=True)
    return Checkout(origin.parent / name)


EVALUATION = ["evaluate-base", "evaluate-model", "evaluate-report"]
TRAINING = ["train", "evaluate-model", "evaluate-report"]
STAGES = ["fetch-base", "fetch-dataset", "encode-images", "encode-captions", "train", *EVALUATION]


def publish(mine: Checkout, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types the commands that publish, for a Hub on this machine, and looks at what it has."""
    to_folder, to_hub = blocks("Publish")
    assert "published to published" in mine.type(to_folder)
    with receiving(room, monkeypatch) as uploads:
        uploads.hub.token = "hf_token"
        mine.environment |= uploads.hub.environment(room / "home") | {"HF_TOKEN": "hf_token", "HF_HUB_DISABLE_XET": "1"}
        said = mine.type(to_hub.replace("OWNER/NAME", "someone/model").replace("LICENSE", "mit"))
        assert "/someone/model/commit/" in said
        sent, written = uploads.files("someone/model"), files(mine.folder / "published")
    assert sent.keys() - {".gitattributes"} == written.keys()
    differ = {name for name in written if sent[name] != written[name]}
    assert differ == {"README.md", "digests.json"}  # where the model is, its licence, and the digest of that
    assert "git checkout" in written["README.md"].decode()
    assert "uncommitted" not in written["README.md"].decode()
    assert mine.type("git status --porcelain") == ""


def test_own_images_and_a_team(origin, tmp_path, monkeypatch) -> None:
    mine = clone(origin, "mine")
    mine.put_images()
    ran = []
    for line in blocks("Your own images"):
        if line.startswith(("source ", "pip ")):
            continue
        ran += mine.stages_run(line)
        if line.startswith("t2i preset"):
            mine.shrink()
    assert sorted(ran) == sorted(STAGES)
    (tmp_path / "hub").mkdir()
    publish(mine, tmp_path / "hub", monkeypatch)

    queued = "dvc exp run --queue -S train.learning_rate=1e-4 -n queued && dvc queue start"
    mine.type(queued)
    assert mine.queue_ended() == ["queued"]
    assert mine.stages_run("dvc exp run --temp -S train.learning_rate=2e-4 -n temporary") == TRAINING

    team = blocks("With a team")
    storage = tmp_path / "storage"
    for line in team[: team.index("git push origin HEAD") + 1]:
        mine.type(line.replace("/mnt/shared/t2i", str(storage)))
    hers = clone(origin, "hers")
    for line, stages in zip(team[team.index("git push origin HEAD") + 1 :], ([], [], TRAINING, []), strict=True):
        assert hers.stages_run(line) == stages, line
    mine.type("git checkout -q . && dvc exp pull origin slower && dvc exp apply slower")
    assert "learning_rate: 0.001" in (mine.folder / "params.yaml").read_text()
    assert mine.stages_run("dvc repro") == []


def test_experiments(origin) -> None:
    mine = clone(origin, "mine")
    mine.put_images()
    mine.type("dvc add data/local/photos && dvc repro")
    baseline = files(mine.folder / "data/model")
    said = {}
    for line in blocks("Experiments"):
        if line.startswith("pip "):
            continue
        name = "" if "NAME" not in line else mine.queue_ended()[0]
        said[line] = mine.type(line.replace("NAME", name))
    params = said["dvc params diff"].strip().splitlines()[1:]
    assert [row.split()[:2] for row in params] == [["params.yaml", "train.learning_rate"]]
    page = (mine.folder / "dvc_plots/index.html").read_text()
    assert "slower" in page
    assert "grid.png" in page
    assert files(mine.folder / "data/model") != baseline
    (back,) = re.findall(r"`(git checkout [^`]*dvc checkout)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    mine.type(back)
    assert files(mine.folder / "data/model") == baseline
    assert mine.type("git status --porcelain --untracked-files=no") == ""
    assert "up to date" in mine.type("dvc status")


def test_a_run_that_was_made_before_comes_from_the_cache(origin) -> None:
    mine = clone(origin, "mine")
    mine.put_images()
    assert mine.stages_run("dvc repro")
    for rate, stages in (("1e-4", TRAINING), ("2e-4", TRAINING), ("1e-4", [])):
        assert mine.stages_run(f"dvc exp run -S train.learning_rate={rate}") == stages
