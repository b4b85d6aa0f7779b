import os
import re
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from t2i.core.params import ParamsError, load_section
from t2i.tools.sections import MODELS
from t2i.train.section import Train
from tests.pipeline import STAGES, sections_of
from tests.victims import t2i, victim

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params() -> dict:
    return YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def complaint(tmp_path: Path, params: dict, section: str) -> str:
    with (tmp_path / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)
    with pytest.raises(ParamsError) as caught:
        load_section(tmp_path / "params.yaml", section, MODELS[section])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_params_yaml_has_exactly_the_known_sections(params) -> None:
    for section, model in MODELS.items():
        load_section(ROOT / "params.yaml", section, model)
    assert set(params) == {section.split(".")[0] for section in MODELS}
    assert set(params["encode"]) == {"images", "captions"}


@pytest.mark.parametrize("section", ["base", "fetch", "encode.images", "encode.captions", "train", "runtime"])
def test_the_recipe_of_the_base_has_valid_sections(section) -> None:
    load_section(ROOT / "base/recipe/params.yaml", section, MODELS[section])


def test_every_parameter_is_documented() -> None:
    for model in MODELS.values():
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


@pytest.mark.parametrize(
    ("section", "path", "key", "near"),
    [
        ("train", ["train"], "learning_rat", "learning_rate"),
        ("train", ["train", "objective", "weighting"], "gama", "gamma"),
        ("train", ["train", "ema"], "dekay", "decay"),
        ("fetch", ["fetch", "source"], "stile", "style"),
        ("encode.images", ["encode", "images", "crop"], "view", "views"),
        ("runtime", ["runtime"], "process", "processes"),
    ],
)
def test_an_unknown_key_gets_its_path_and_the_nearest_name(tmp_path, params, section, path, key, near) -> None:
    node = params
    for part in path:
        node = node[part]
    node[key] = 1
    said = complaint(tmp_path, params, section)
    assert f"`{'.'.join([*path, key])}`" in said
    assert f"`{near}`" in said


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learning_rate", "1e-5x", "`train.learning_rate`: .*valid number.* '1e-5x' .str"),
        ("learning_rate", -1.0, "`train.learning_rate`: .*greater than 0.* -1.0"),
        ("learning_rate", None, "`train.learning_rate`: .* None"),
        ("learning_rate", float("inf"), "`train.learning_rate`: .*finite number"),
        ("batch_size", 2.5, "`train.batch_size`: .*valid integer.* 2.5 .float"),
        ("batch_size", True, "`train.batch_size`: .* True .bool"),
        ("precision", "fp8", "`train.precision`: .*'fp32', 'bf16' or 'fp16'.* 'fp8'"),
        ("schedule", {"name": "cosin"}, "`train.schedule`"),
        ("trainable", "attn[", r"`train.trainable`: .*'attn\['.* regular expression"),
        ("trainable", "(" * 50_000, "`train.trainable`: .* regular expression: maximum recursion depth exceeded"),
        ("ema", [1, 2], "`train.ema`: .*valid dictionary"),
        ("steps", 0, "`train.steps`: .*greater than or equal to 1.* 0"),
        ("steps", None, "`steps`.*`epochs`"),
        ("epochs", 0, "`train.epochs`: .*greater than or equal to 1.* 0"),
        ("epochs", 3, "`steps`.*`epochs`"),
    ],
)
def test_a_wrong_value_gets_its_key_the_value_and_what_is_wanted(tmp_path, params, key, value, said) -> None:
    params["train"][key] = value
    assert re.search(said, complaint(tmp_path, params, "train"))


@pytest.mark.skipif(os.sep != "/", reason="Windows has these separators")
@pytest.mark.parametrize(("section", "key"), [("fetch", "local"), ("base", "local"), ("base", "vae"), ("base", "clip")])
def test_paths_with_separators_of_windows_are_refused(tmp_path, params, section, key) -> None:
    params[section][key] = r"data\local"
    said = complaint(tmp_path, params, section)
    assert f"`{section}.{key}`: write / instead of \\, got " in said


def test_a_missing_key_or_section_is_named(tmp_path, params) -> None:
    del params["train"]["seed"]
    assert "`train.seed`" in complaint(tmp_path, params, "train")
    del params["train"]
    assert "params.yaml: no section `train`" in complaint(tmp_path, params, "train")


def test_an_unknown_source_lists_the_sources(tmp_path, params) -> None:
    params["fetch"]["source"] = {"name": "folderr"}
    said = complaint(tmp_path, params, "fetch")
    assert "'folderr'" in said
    assert re.search("`folder`, `hub`, `openmoji`, `parquet`, `webdataset`.*`folder`", said)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("on_bad", "ignore", "`fetch.on_bad`: .*'error' or 'skip'.* 'ignore' .str"),
        ("max_bad_fraction", 1.5, "`fetch.max_bad_fraction`: .*less than or equal to 1.* 1.5"),
        ("max_bad_fraction", float("nan"), "`fetch.max_bad_fraction`: input should be"),
        ("max_pixels", 10**9, "`fetch.max_pixels`: .*less than or equal to 178956970"),
        ("max_decode_seconds", 0.0, "`fetch.max_decode_seconds`: .*greater than 0.* 0.0"),
        ("min_side_px", 0, "`fetch.min_side_px`: .*greater than or equal to 1.* 0"),
    ],
)
def test_limits_on_bad_records_are_checked(tmp_path, params, key, value, said) -> None:
    params["fetch"][key] = value
    assert re.search(said, complaint(tmp_path, params, "fetch"))


ALIASES = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(f'*{old}' for _ in range(9))}]\n" for old, new in pairwise("abcdefghij")
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join(f'*{old}' for _ in range(9))}]}}\n" for old, new in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"# nothing\n---\n", "empty"),
        (b"train: {a: 1, a: 2}", "duplicate key"),
        (b"train:\n  seed: 1\ntrain:\n  seed: 2\n", "duplicate key"),
        (b"train:\n\ta: 1", "YAML 1.2"),
        (b"train: \xff\xfe", "UTF-8.* byte 7"),
        ("train: {}".encode("utf-16"), "UTF-8.* byte 0"),
        (b"train: \0", "YAML 1.2"),
        (b"train: {}\n---\ntrain: {}", "a single document"),
        (b"train: !!python/object/apply:os.abort []", "YAML 1.2: could not determine a constructor"),
        (b"- a\n" * 1000, r"`train:`.* \['a', 'a', 'a', 'a', 'a', 'a', \.\.\.\]"),
        (b"train: [1, 2]", r"`train`: .*dictionary.* \[1, 2\] \(list\)"),
        (b"train:", "`train`: .* None"),
        (b"train: " + b"[" * 40_000, "YAML 1.2: maximum recursion depth exceeded"),
        (b"train: " + b"1" * 5000, "4300 digits"),
        (ALIASES.encode() + b"train: *j", "aliases.* 100000"),
        (MERGES.encode() + b"train: *j", "aliases.* 100000"),
        (b"train: &a {b: *a}", "aliases.* 100000"),
        (b"# " + b"x" * 10_000_000, "10000002 bytes.* 100000"),
        (b"train: {" + b",".join(b"k%d: 1" % n for n in range(5000)) + b"}", "50[0-9][0-9] more$"),
        (b"train: {" + b"k" * 1000 + b": 1}", "`train.k{80}`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_without_parameters_is_refused_in_one_line(tmp_path, content, said) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    started = time.process_time()
    with pytest.raises(ParamsError, match=said) as caught:
        load_section(tmp_path / "params.yaml", "train", Train)
    assert time.process_time() - started < 3
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 4000


def test_a_folder_or_a_missing_file_is_refused(tmp_path) -> None:
    for path, said in ((tmp_path, "Is a directory.*--params"), (tmp_path / "none.yaml", "none.yaml: no such file.*--params")):
        with pytest.raises(ParamsError, match=said):
            load_section(path, "train", Train)


def test_an_alias_has_the_value_of_its_anchor(tmp_path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("batch_size: 16", "batch_size: &size 16", 1).replace("warmup_steps: 50", "warmup_steps: *size", 1)
    (tmp_path / "params.yaml").write_text(text)
    section = load_section(tmp_path / "params.yaml", "train", Train)
    assert section.batch_size == section.warmup_steps == 16


@pytest.mark.parametrize("value", ["yes", "no", "on", "Yes", "'true'", "1", "null", "", "1e400", "[true]"])
def test_only_booleans_of_yaml_1_2_are_booleans(tmp_path, value) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("use_flips: true", f"use_flips: {value}"))
    with pytest.raises(ParamsError, match=r"`train.use_flips`: .*valid boolean"):
        load_section(tmp_path / "params.yaml", "train", Train)


@pytest.mark.parametrize("value", ["1e400", "-1e400", ".inf", ".nan"])
def test_a_number_that_is_not_finite_is_refused(tmp_path, value) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(re.sub(r"  learning_rate: \S+", f"  learning_rate: {value}", text))
    with pytest.raises(ParamsError, match=r"`train.learning_rate`: .*finite number.* -?(inf|nan)"):
        load_section(tmp_path / "params.yaml", "train", Train)


def test_dvc_style_exponents_are_numbers(tmp_path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(re.sub(r"  learning_rate: \S+", "  learning_rate: 1e-05", text))
    assert load_section(tmp_path / "params.yaml", "train", Train).learning_rate == 1e-5


COMMANDS = [stage["cmd"].removeprefix("python -m ") for stage in STAGES.values()]


def spoil(tmp_path: Path, params: dict, *sections: str) -> None:
    """Writes the parameter file with an unknown key in some sections."""
    for section in sections:
        node = params
        for name in section.split("."):
            node = node[name]
        node["sed"] = 1
    with (tmp_path / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)


@pytest.mark.slow
@pytest.mark.parametrize("stage", COMMANDS)
def test_a_bad_parameter_ends_a_stage_in_3_s_with_code_2(tmp_path, params, stage) -> None:
    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    spoil(tmp_path, params, *MODELS)
    words, environment = [sys.executable, "-m", *stage.split()], os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(3):  # other processes may use the processor's caches
        before = seconds()
        ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        if (took := seconds() - before) < 3:
            break
    assert took < 3
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: params.yaml: `")
    assert ".sed`" in ended.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "params.yaml"]


@pytest.mark.parametrize(
    ("stage", "section"), [(stage, section) for stage in COMMANDS for section in sorted(sections_of(stage))]
)
def test_a_stage_checks_its_sections_before_anything_else(tmp_path, params, monkeypatch, stage, section) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path, params, section)
    ended = victim(lambda: t2i(*stage.removeprefix("stages.").split()))
    assert ended.code == 2, ended.said
    assert ended.said.startswith(f"error: params.yaml: `{section}.sed`")
    assert ended.said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "params.yaml"]


@pytest.mark.slow
def test_help_imports_no_torch() -> None:
    code = "import sys; from stages.tools import app; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "text", ["train: 5\n", "a: [1\n", "other: {}\n", "", "train: {steps: x, batch_sise: 2}\n"], ids=str.strip
)
def test_an_error_names_the_file_once(tmp_path, text) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ParamsError) as caught:
        load_section(tmp_path / "p.yaml", "train", Train)
    assert str(caught.value).count("p.yaml") == 1


def test_a_file_of_notepad_is_read(tmp_path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "p.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_section(tmp_path / "p.yaml", "train", Train) == load_section(ROOT / "params.yaml", "train", Train)
