"""The pipeline without what only Linux has: `dvc repro` runs while our code is refused fcntl, resource, prctl, fork, /proc."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.projects import ROOT, Project

pytestmark = pytest.mark.slow

REFUSING = ROOT / "tests/refusing"
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(REFUSING),
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.parametrize(
    "line",
    [
        "import fcntl",
        "import resource",
        "import os; os.fork()",
        "open('/proc/self/statm')",
        "import pathlib; pathlib.Path('/proc/locks').read_text()",
        "import ctypes; ctypes.CDLL(None)",
        "import multiprocessing; multiprocessing.get_context('fork').Process().start()",
    ],
)
def test_our_code_is_refused_and_libraries_are_not(line) -> None:
    code = f"exec({line!r}, {{'__name__': NAME}})"
    for name, code_wanted in (("t2i.fetch.bounds", 1), ("psutil", 0)):
        done = subprocess.run([sys.executable, "-c", code.replace("NAME", repr(name))], env=ENVIRONMENT, capture_output=True)
        assert done.returncode == code_wanted, done.stderr


def test_the_pipeline_runs_without_what_only_linux_has(tmp_path) -> None:
    for name in ("stages", "t2i"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvcignore", "dvc.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    tiny.make_base(tmp_path / "base/tiny")
    tiny.make_images(tmp_path / "data/local", 16)
    (tmp_path / "data/local/broken.png").write_bytes(b"no image")
    with (tmp_path / "data/local/metadata.jsonl").open("a") as file:
        file.write('{"file_name": "broken.png", "text": "x"}\n')
    project = Project(tmp_path, Path("base/tiny"))
    project.params["fetch"] |= {"local": "data/local", "on_bad": "skip", "max_bad_fraction": 0.5}
    project.write()
    for line in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro"], ["t2i", "doctor"]):
        words = [sys.executable, "-m", "dvc", *line[1:]] if line[0] == "dvc" else line
        words = [sys.executable, "-m", "stages.tools", "doctor"] if line[0] == "t2i" else words
        done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "data/reports/report.html").exists()
    assert json.loads((tmp_path / "data/reports/fetch-dataset/metrics.json").read_text())["skipped"] == 1
