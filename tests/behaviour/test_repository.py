"""The files around the code: workflows, issue form, changelog, packaging, and the scripts that only import the library."""

import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML
from typer.main import get_command

from stages.tools import app
from tests.projects import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
RECIPE = sorted(path.stem for path in (ROOT / "base/recipe").glob("*.py"))


def parsed(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def commands(path: Path) -> list[str]:
    return [step["run"] for job in parsed(path)["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", [path for path in WORKFLOWS if path.stem != "systems"], ids=lambda path: path.stem)
def test_workflows_call_targets_of_the_makefile(path: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert parsed(path)["on"]
    assert commands(path)
    for command in commands(path):
        program, target = command.split()
        assert program == "make"
        assert target in targets


def test_workflows_use_the_oldest_python_allowed() -> None:
    (job,) = parsed(ROOT / ".github/workflows/tests.yml")["jobs"].values()
    oldest, newest = job["strategy"]["matrix"]["python-version"]
    assert PROJECT["project"]["requires-python"] == f">={oldest}"
    assert int(newest.split(".")[1]) > int(oldest.split(".")[1])


def test_other_systems_run_the_quick_tests_and_the_pipeline() -> None:
    path = ROOT / ".github/workflows/systems.yml"
    assert parsed(path)["jobs"]["test"]["strategy"]["matrix"]["system"] == ["macos-latest", "windows-latest"]
    assert commands(path)[-2:] == ['python -m pytest -m "not slow"', "dvc repro"]


def test_nightly_uploads_what_the_pipeline_writes() -> None:
    (job,) = parsed(ROOT / ".github/workflows/nightly.yml")["jobs"].values()
    (paths,) = [step["with"]["path"].split() for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    report = parsed(ROOT / "dvc.yaml")["stages"]["evaluate-report"]
    for path in paths:
        assert any(path == out or path.startswith(f"{out}/") for out in report["outs"] + report["plots"])


def test_issue_form_asks_for_what_a_maintainer_needs() -> None:
    form = parsed(ROOT / ".github/ISSUE_TEMPLATE/bug.yml")
    fields = {field["id"]: field for field in form["body"] if field["type"] != "markdown"}
    assert {"command", "expected", "doctor", "params"} <= fields.keys()
    assert all(field["attributes"]["label"] and field["validations"]["required"] for field in fields.values())
    text = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"`t2i (\w+)", text)) <= get_command(app).commands.keys()  # type: ignore[attr-defined]
    assert "blank_issues_enabled" in parsed(ROOT / ".github/ISSUE_TEMPLATE/config.yml")


def test_pre_commit_has_the_pinned_ruff() -> None:
    (repository,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    pins = (ROOT / "requirements-test.txt").read_text(encoding="utf-8").splitlines()
    assert f"ruff=={repository['rev'].removeprefix('v')}" in pins
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff-check", "ruff-format"}


def test_changelog_begins_with_the_version_of_pyproject() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = re.split(r"^## ", text, flags=re.M)[1:]
    heads = [re.findall(r"\A\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", entry, re.M) for entry in entries]
    assert all(heads)
    assert heads[0] == [PROJECT["project"]["version"]]
    assert all("\n### Invalidates\n" in entry for entry in entries)


def test_the_version_stands_only_in_pyproject() -> None:
    version = PROJECT["project"]["version"]
    assert "version" not in parsed(ROOT / "CITATION.cff")
    assert parsed(ROOT / "CITATION.cff")["license"] == PROJECT["project"]["license"]
    for path in [*(ROOT / "t2i").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]:
        assert f'"{version}"' not in path.read_text(encoding="utf-8"), path


def test_the_package_has_every_file_that_is_not_code() -> None:
    listed = {
        ROOT / package.replace(".", "/") / name
        for package, names in PROJECT["tool"]["setuptools"]["package-data"].items()
        for name in names
    }
    ignored = {".py", ".pyc"}
    found = {path for path in (ROOT / "t2i").rglob("*") if path.is_file() and path.suffix not in ignored}
    assert found == listed
    assert ROOT / "t2i/py.typed" in listed


@pytest.mark.parametrize("script", RECIPE)
def test_scripts_of_the_recipe_import(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "base/recipe")
    before = set(sys.modules)
    module = importlib.import_module(script)
    for name in {*RECIPE} & (sys.modules.keys() - before):
        del sys.modules[name]
    assert module.__file__ == str(ROOT / f"base/recipe/{script}.py")


@pytest.mark.parametrize(
    ("name", "ignored"), [("files.py", False), (".files.py.swp", True), ("files.py~", True), (".#files.py", True)]
)
def test_dvc_ignores_files_of_editors(name: str, ignored: bool, tmp_path: Path) -> None:
    repo = Repo.init(str(tmp_path), no_scm=True)
    (tmp_path / ".dvcignore").write_bytes((ROOT / ".dvcignore").read_bytes())
    folder = tmp_path / "t2i/core"
    folder.mkdir(parents=True)
    (folder / name).touch()
    repo.close()
    with Repo(str(tmp_path)) as repo:
        assert repo.dvcignore.is_ignored_file(str(folder / name)) == ignored
