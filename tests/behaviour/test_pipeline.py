"""Compares dvc.yaml with the code: DVC does not follow imports, so these tests do."""

import ast

import pytest

from tests.pipeline import PARAMS, STAGES, closure, declared, file_of, imports_of, is_in_plugin, plugins, sections_of
from tests.projects import ROOT


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_exactly_the_code_that_it_runs(stage: str) -> None:
    assert declared(stage) == closure(STAGES[stage]["cmd"])


@pytest.mark.parametrize(
    ("package", "stage"),
    [("t2i.fetch.sources", "fetch-dataset"), ("t2i.model.families", "train"), ("t2i.model.adapters", "train")],
)
def test_plugins_import_only_code_that_the_stage_lists(package: str, stage: str) -> None:
    assert plugins(package)
    for path in plugins(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {file_of(module) for module in imports_of(tree) if not is_in_plugin(module)}
        assert {str(file.relative_to(ROOT)) for file in imported if file} <= declared(stage), path


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_exactly_the_sections_that_it_loads(stage: str) -> None:
    declared = {"base" if section.startswith("base") else section for section in STAGES[stage]["params"]}
    assert sections_of(STAGES[stage]["cmd"]) - {"runtime"} == declared


def test_every_dependency_is_an_output_or_an_input_in_git() -> None:
    outs = {"base/openmoji", "data/local"}
    for stage in STAGES.values():
        for kind in ("outs", "metrics", "plots"):
            outs |= {next(iter(out)) if isinstance(out, dict) else out for out in stage.get(kind, [])}
    for stage in STAGES.values():
        for dep in stage["deps"]:
            assert dep.startswith(("stages/", "t2i/", "${")) or any(dep == out or dep.startswith(f"{out}/") for out in outs), (
                dep
            )


def test_dvc_watches_the_folders_that_a_user_names() -> None:
    assert "${base.local}" in STAGES["fetch-base"]["deps"]
    assert "${fetch.local}" in STAGES["fetch-dataset"]["deps"]
    for section in ("base", "fetch"):
        assert (ROOT / PARAMS[section]["local"]).is_dir()


def test_init_files_are_empty() -> None:
    assert all(path.read_text() == "" for folder in ("t2i", "stages") for path in (ROOT / folder).rglob("__init__.py"))


def test_files_and_functions_stay_below_their_size_limits() -> None:
    for path in [*(ROOT / "t2i").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 250, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < (60 if node.name == "optimize" else 40), f"{path}: {node.name}"


def test_no_test_imports_another_test() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").rpartition(".")[2].startswith("test_"), path


def test_every_room_of_the_library_has_its_tests() -> None:
    rooms = {path.name for path in (ROOT / "t2i").iterdir() if (path / "__init__.py").is_file()}
    assert rooms == {"core", "data", "model", "fetch", "encode", "train", "evaluate", "tools"}
    assert all(list((ROOT / "tests" / room).glob("test_*.py")) for room in rooms)
    for path in (ROOT / "tests").glob("*/**/test_*.py"):
        place = path.relative_to(ROOT / "tests").parent
        if place.parts[0] in rooms:
            module = path.stem.removeprefix("test_")
            folder = ROOT / "t2i" / place
            assert (folder / f"{module}.py").is_file() or (folder / module).is_dir(), f"{path} tests no module of {folder}"
