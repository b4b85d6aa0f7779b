"""Uploads with the Hub's own client, to a fake Hub on this machine."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i.tools.upload import open_target, upload
from tests.writable_hub import Uploads, receiving

pytestmark = pytest.mark.slow

TOKEN = "hf_thisTokenIsToBeFoundNowhere"
CARD = "---\nlicense: mit\nbase_model: owner/base\n---\n# A model\n"


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Uploads]:
    """A Hub that takes the uploads of one account, and has a dataset of it."""
    (tmp_path / "dataset").mkdir()
    with receiving(tmp_path, monkeypatch) as uploads:
        uploads.hub.token = TOKEN
        uploads.hub.repositories["datasets/someone/pictures"] = tmp_path / "dataset"
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield uploads


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "unet/config.json").write_text("{}")
    for number in range(3):
        (folder / f"unet/part-{number}.safetensors").write_bytes(bytes([number]) * 1000)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(name: str = "someone/model", *, private: bool = False) -> str:
    with pytest.raises(ValueError, match=r".+") as refused:
        open_target(name, private=private)
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("private", [False, True])
def test_a_new_repository_has_every_file(uploads, folder, private) -> None:
    target = open_target("someone/model", private=private)
    assert uploads.wrote() == []
    assert "/someone/model/commit/" in upload(folder, target, "a model").url
    assert {name: data for name, data in uploads.files("someone/model").items() if name[0] != "."} == content(folder)
    assert ("someone/model" in uploads.hub.private) == private


def test_an_interrupted_upload_continues(uploads, folder) -> None:
    sent = sorted(hashlib.sha256(data).hexdigest() for name, data in content(folder).items() if name.endswith("tensors"))
    uploads.refuses = {sent[1]}
    with pytest.raises(ValueError, match=r"someone/model: no permission \(403\)"):
        upload(folder, open_target("someone/model", private=False), "a model")
    assert sent[1] not in uploads.received
    assert uploads.commits == []
    uploads.refuses = set()
    upload(folder, open_target("someone/model", private=False), "a model")
    assert sorted(uploads.received) == sent  # none of them twice
    assert uploads.files("someone/model")["unet/part-2.safetensors"] == bytes([2]) * 1000


def test_a_repeated_upload_sends_no_file_again(uploads, folder) -> None:
    for _ in range(2):
        upload(folder, open_target("someone/model", private=False), "a model")
    assert len(uploads.received) == 3
    assert len(uploads.commits) == 1


def test_old_weights_and_pictures_go_and_other_files_stay(uploads, folder) -> None:
    upload(folder, open_target("someone/model", private=False), "a model")
    there = uploads.hub.repositories["models/someone/model"]
    for name in ("adapter.safetensors", "pictures/old.png", "notes.md"):
        (there / name).parent.mkdir(exist_ok=True)
        (there / name).write_text("by hand")
    upload(folder, open_target("someone/model", private=False), "a model")
    assert uploads.commits[-1] == ["-adapter.safetensors", "-pictures/old.png"]
    assert (there / "notes.md").exists()


def test_a_public_repository_is_not_taken_for_a_private_one(uploads, folder) -> None:
    upload(folder, open_target("someone/model", private=False), "a model")
    before = uploads.wrote()
    said = refusal(private=True)
    assert "--private" in said
    assert "is public" in said
    assert "someone/model/settings" in said
    assert uploads.wrote() == before


def test_a_private_repository_stays_private(uploads, folder) -> None:
    upload(folder, open_target("someone/model", private=True), "a model")
    target = open_target("someone/model", private=False)
    assert target.private
    assert upload(folder, target, "a model").private
    assert uploads.hub.private == {"someone/model"}


def test_a_repository_that_became_public_gets_nothing(uploads, folder, tmp_path) -> None:
    target = open_target("someone/model", private=True)
    (tmp_path / "theirs").mkdir()
    uploads.hub.repositories["models/someone/model"] = tmp_path / "theirs"
    with pytest.raises(ValueError, match="someone/model: is public by now"):
        upload(folder, target, "a model")
    assert uploads.received == []
    assert uploads.commits == []


@pytest.mark.parametrize("token", [None, "", " "])
def test_without_a_token_nothing_is_asked(uploads, monkeypatch, token) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    said = refusal()
    assert "HF_TOKEN is not set" in said
    assert "/settings/tokens" in said
    assert uploads.hub.asked == []


def test_a_saved_login_is_not_used(uploads, monkeypatch, tmp_path) -> None:
    from huggingface_hub import constants

    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN is not set" in refusal()


@pytest.mark.parametrize("name", ["model", "a/b/c", "someone/mo del", "someone/.model", "someone/a--b", "someone/x.git", ""])
def test_an_invalid_name_is_refused_before_the_hub_is_asked(uploads, name) -> None:
    assert "--hub" in refusal(name)
    assert uploads.hub.asked == []


def test_an_invalid_token_is_refused(uploads, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = refusal()
    assert "invalid token (401)" in said
    assert "hf_wrong" not in said


def test_a_token_that_may_not_write_is_refused(uploads, folder) -> None:
    uploads.hub.repositories["models/another/model"] = folder
    assert "no permission (403): HF_TOKEN needs write access to another" in refusal("another/model")
    with pytest.raises(ValueError, match=r"no permission \(403\): HF_TOKEN needs write access to stranger"):
        upload(folder, open_target("stranger/model", private=False), "a model")
    assert uploads.received == []


def test_a_gated_repository_is_not_taken_for_a_new_one(uploads, folder) -> None:
    uploads.hub.repositories["models/someone/model"] = folder
    uploads.hub.refusals["uploads"] = (403, {"X-Error-Code": "GatedRepo"})
    assert "no permission (403)" in refusal()


def test_the_name_of_a_dataset_is_refused(uploads) -> None:
    assert "someone/pictures: is a dataset on the Hub" in refusal("someone/pictures")


def test_offline_is_refused(uploads, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refusal()
    assert "cannot reach http://127.0.0.1:9" in said
    assert "network" in said


def test_a_card_that_the_hub_refuses_stops_before_the_upload(uploads, folder) -> None:
    (folder / "README.md").write_text(CARD.replace("mit", "my-own"))
    with pytest.raises(ValueError, match=r"does not accept the card: .*license.*must be one of"):
        upload(folder, open_target("someone/model", private=False), "a model")
    assert uploads.wrote() == []
