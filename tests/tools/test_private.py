from pathlib import Path

import pytest

from t2i.tools.facts import parsed
from t2i.tools.private import check_private, short, without_paths, without_stated_paths


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/home/someone/photos", "photos"),
        ("~/photos", "photos"),
        ("C:\\Users\\someone\\photos", "photos"),
        ("/home/someone/vae@main", "vae@main"),
        ("data/local/photos", "data/local/photos"),
        ("owner/name", "owner/name"),
        ("s3://bucket-of-a-team/project", "project"),
    ],
)
def test_only_absolute_paths_are_shortened(path, wanted) -> None:
    assert short(path) == wanted


def test_paths_of_parameters_are_shortened_and_prompts_are_not() -> None:
    text = "base: {local: /home/a/base, clip: /home/a/base/clip}\n# in /home/a/base\nencode: {prompts: [/imagine a cat]}\n"
    public = without_paths(text, parsed(text))
    assert public == "base: {local: base, clip: clip}\n# in base\nencode: {prompts: [/imagine a cat]}\n"
    text = "runtime: {store: s3://secret/shards, shard_cache: {folder: /mnt/b/cache, gb: 1}}\n"
    assert without_paths(text, parsed(text)) == "runtime: {store: shards, shard_cache: {folder: cache, gb: 1}}\n"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("/home/a/my model", "my model"), (r"C:\\Users\\a\\model", "model"), ("owner/name", "owner/name")],
)
def test_configurations_lose_the_folder_they_were_loaded_from(path, wanted) -> None:
    text = '{"_name_or_path": "%s", "width": 3, "/a": "/b"}'
    assert without_stated_paths(text % path) == text % wanted


@pytest.mark.parametrize("where", ["cwd", "home", "token"])
def test_a_private_text_is_found_in_any_file(tmp_path, monkeypatch, where) -> None:
    here, home = tmp_path / "one/two", tmp_path / "home/someone"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (folder := tmp_path / "out").mkdir()
    (folder / "empty").touch()
    (folder / "weights.bin").write_bytes(b"\0" * 5000 + str(Path("/another/place")).encode())
    check_private(folder)
    secret = {"cwd": f"{here}/data", "home": f"{home}/x", "token": "hf_secret"}[where]
    (folder / "weights.bin").write_bytes(b"\0" * 5000 + secret.encode() + b"\0")
    with pytest.raises(ValueError, match=r"^weights\.bin: holds the ") as refused:
        check_private(folder)
    assert "hf_secret" not in str(refused.value)
    assert {"cwd": str(here), "home": str(home), "token": "HF_TOKEN"}[where] in str(refused.value)
