"""dvc.yaml against the code: DVC follows no imports, so the imports are followed here."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
CHOSEN = {
    "t2i.fetch.sources": "t2i/fetch/sources/${fetch.source.name}.py",
    "t2i.model.families": "t2i/model/families/${base.family}.py",
}
"""Packages whose module a parameter chooses, and the name that dvc.yaml gives it."""


def file_of(module: str) -> Path | None:
    path = ROOT / f"{module.replace('.', '/')}.py"
    return path if path.is_file() else None


def imports_of(tree: ast.AST, *, inside: str | None = None) -> set[str]:
    """Our modules that some code imports; of a stage, only what stands at its top and in the command."""
    found = set()
    bodies = [tree]
    if inside is not None:
        assert isinstance(tree, ast.Module)
        bodies = [n for n in tree.body if not isinstance(n, ast.FunctionDef) or n.name in (inside, "_print")]
    for node in (n for body in bodies for n in ast.walk(body)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and node.value in CHOSEN:
            found.add(str(node.value))
        found |= {name for name in names if name.split(".")[0] in ("t2i", "stages") and file_of(name)}
    return found


def closure(command: str) -> set[str]:
    """Every file of ours that a command runs, whichever plug-ins are chosen; those by the name that dvc.yaml gives them."""
    words = command.removeprefix("exec python -m ").split()
    start = file_of(words[0])
    assert start is not None, command
    files = {str(start.relative_to(ROOT))}
    waiting = imports_of(ast.parse(start.read_text(encoding="utf-8")), inside=words[1] if len(words) > 1 else "main")
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        if module in CHOSEN:
            files.add(CHOSEN[module])
            paths = plugins(module)
        else:
            path = file_of(module)
            assert path is not None
            paths = [path]
            files.add(str(path.relative_to(ROOT)))
            if (template := path.with_suffix(".html")).is_file():
                files.add(str(template.relative_to(ROOT)))
        for path in paths:
            waiting |= imports_of(ast.parse(path.read_text(encoding="utf-8"))) - seen
    return files


def files_in(folder: str) -> set[str]:
    """The code of a folder, as a stage that names it has it hashed; the files of no plug-in that a parameter chooses."""
    found = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".html")}
    return {name for name in found if not name.endswith("__init__.py")}


def declared(stage: str) -> set[str]:
    """Every file of ours that a stage lists, those of the folders that it names whole among them."""
    deps = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("stages/", "t2i/"))]
    return {name for dep in deps for name in (files_in(dep) if (ROOT / dep).is_dir() else {dep})}


def plugins(package: str) -> list[Path]:
    return [path for path in (ROOT / package.replace(".", "/")).glob("*.py") if path.name != "__init__.py"]


def listed(files: set[str]) -> list[str]:
    """The same files as dvc.yaml names them: a folder where every file in it is among them."""
    rooms = {
        folder: files_in(folder) for folder in sorted({name.rpartition("/")[0] for name in files if name.startswith("t2i/")})
    }
    whole = {folder for folder, inside in rooms.items() if inside <= files}
    return sorted(whole | {name for name in files if name.rpartition("/")[0] not in whole})


@pytest.mark.parametrize("stage", STAGES)
def test_declared_code_is_exactly_what_runs(stage: str) -> None:
    assert declared(stage) == closure(STAGES[stage]["cmd"])


@pytest.mark.parametrize(("package", "stage"), [("t2i.fetch.sources", "fetch-dataset"), ("t2i.model.families", "train")])
def test_no_plugin_imports_what_is_not_declared_whichever_is_chosen(package: str, stage: str) -> None:
    assert plugins(package)
    for path in plugins(package):
        imported = {file_of(module) for module in imports_of(ast.parse(path.read_text(encoding="utf-8")))}
        assert {str(file.relative_to(ROOT)) for file in imported if file} <= declared(stage), path


def sections_of(command: str) -> set[str]:
    """The sections of params.yaml that a command loads."""
    words = command.removeprefix("exec python -m ").split()
    path = file_of(words[0])
    assert path is not None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == (words[1] if len(words) > 1 else "main"))
    return {
        str(node.args[1].value)
        for node in ast.walk(body)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "load" and isinstance(node.args[1], ast.Constant)
    }


@pytest.mark.parametrize("stage", STAGES)
def test_declared_sections_are_exactly_those_that_the_command_loads(stage: str) -> None:
    declared = {"base" if section.startswith("base") else section for section in STAGES[stage]["params"]}
    assert sections_of(STAGES[stage]["cmd"]) - {"runtime"} == declared


def test_every_stage_writes_what_the_next_reads() -> None:
    outs = {"base/openmoji", "data/local"}
    for stage in STAGES.values():
        for kind in ("outs", "metrics", "plots"):
            outs |= {next(iter(out)) if isinstance(out, dict) else out for out in stage.get(kind, [])}
    for stage in STAGES.values():
        for dep in stage["deps"]:
            assert dep.startswith(("stages/", "t2i/", "${")) or any(dep == out or dep.startswith(f"{out}/") for out in outs), (
                dep
            )


def test_what_a_user_points_at_is_watched() -> None:
    assert "${base.local}" in STAGES["fetch-base"]["deps"]
    assert "${fetch.local}" in STAGES["fetch-dataset"]["deps"]
    for section in ("base", "fetch"):
        assert (ROOT / PARAMS[section]["local"]).is_dir()


def test_init_files_are_empty() -> None:
    assert all(path.read_text() == "" for folder in ("t2i", "stages") for path in (ROOT / folder).rglob("__init__.py"))


def test_ceilings_of_size_are_kept() -> None:
    for path in [*(ROOT / "t2i").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 250, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < (60 if node.name == "_optimize" else 40), f"{path}: {node.name}"


if __name__ == "__main__":
    for stage, content in STAGES.items():
        print(f"{stage}:", *(f"  - {file}" for file in listed(closure(content["cmd"]))), sep="\n")
