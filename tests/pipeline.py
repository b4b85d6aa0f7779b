"""Reads what dvc.yaml lists and what the code imports: DVC does not follow imports, so this module does."""

import ast
from pathlib import Path

from ruamel.yaml import YAML

from tests.projects import ROOT

STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))

CHOSEN = {
    "t2i.fetch.sources": "t2i/fetch/sources/${fetch.source.name}.py",
    "t2i.model.families": "t2i/model/families/${base.family}.py",
    "t2i.model.adapters": "t2i/model/adapters/${train.adapter.name}",
}
"""Packages whose module or package a parameter chooses, and the template of its path in dvc.yaml."""


def file_of(module: str) -> Path | None:
    path = ROOT / f"{module.replace('.', '/')}.py"
    return path if path.is_file() else None


def imports_of(tree: ast.AST, *, inside: str | None = None) -> set[str]:
    """Returns our modules that some code imports; with `inside`, only the imports at the top and in that command."""
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
    """Returns all our files that a command can run; plug-ins are given by their template in dvc.yaml."""
    words = command.removeprefix("python -m ").split()
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
            found = imports_of(ast.parse(path.read_text(encoding="utf-8"))) - seen
            module = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
            waiting |= {name for name in found if not (is_in_plugin(name) and is_in_plugin(module))}
    return files


def is_in_plugin(module: str) -> bool:
    """Returns whether a module belongs to a plug-in, which its template lists with all its files."""
    return any(module.startswith(f"{package}.") for package in CHOSEN)


def files_in(folder: str) -> set[str]:
    """Returns the code files of a folder, as DVC hashes it."""
    found = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".html")}
    return {name for name in found if not name.endswith("__init__.py")}


def declared(stage: str) -> set[str]:
    """Returns all our files that a stage lists, including those in the folders that it lists."""
    deps = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("stages/", "t2i/"))]
    return {name for dep in deps for name in (files_in(dep) if (ROOT / dep).is_dir() else {dep})}


def plugins(package: str) -> list[Path]:
    """Returns the files of the modules and packages in a package."""
    folder = ROOT / package.replace(".", "/")
    return [path for path in folder.rglob("*.py") if path != folder / "__init__.py"]


def listed(files: set[str]) -> list[str]:
    """Returns the same files as dvc.yaml lists them: a folder instead of its files if all of them are included."""
    rooms = {
        folder: files_in(folder) for folder in sorted({name.rpartition("/")[0] for name in files if name.startswith("t2i/")})
    }
    whole = {folder for folder, inside in rooms.items() if inside <= files}
    return sorted(whole | {name for name in files if name.rpartition("/")[0] not in whole})


def sections_of(command: str) -> set[str]:
    """Returns the sections of params.yaml that a command loads."""
    words = command.removeprefix("python -m ").split()
    path = file_of(words[0])
    assert path is not None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == (words[1] if len(words) > 1 else "main"))
    calls = [node for node in ast.walk(body) if isinstance(node, ast.Call)]
    named = {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
    loaded = {
        str(node.args[1].value)
        for node in calls
        if getattr(node.func, "id", "") == "load_section" and isinstance(node.args[1], ast.Constant)
    }
    return loaded | ({"base"} if named & {"open_family", "open_tuned", "open_images", "open_captions"} else set())


if __name__ == "__main__":
    for stage, content in STAGES.items():
        print(f"{stage}:", *(f"  - {file}" for file in listed(closure(content["cmd"]))), sep="\n")
