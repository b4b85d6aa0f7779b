"""Errors of the Hub, each from a real server on 127.0.0.1 (tests/fake_hub.py)."""

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import t2i.fetch.hub
from t2i.fetch.base import fetch_base
from t2i.fetch.source import Dataset
from t2i.fetch.sources import hub as source
from tests import tiny
from tests.fake_hub import COMMIT, FakeHub, serving
from tests.projects import base_section

NO_NAME = {"X-Error-Code": "RepoNotFound"}
GATED = {"X-Error-Code": "GatedRepo"}


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving() as hub:
        hub.repositories["models/someone/tiny"] = tiny_base
        hub.repositories["models/someone/clip"] = tiny_base / "clip"
        hub.repositories["models/someone/vae"] = tiny_base / "vae"
        hub.point_here(monkeypatch, tmp_path / "cache")
        yield hub


def fetch(tmp_path: Path, **changes) -> dict[str, str]:
    base = base_section(**({"hub": "someone/tiny", "local": tmp_path, "clip": "someone/clip"} | changes))
    fetch_base(base, tmp_path / "base", tmp_path / "clip")
    return json.loads((tmp_path / "base" / "source.json").read_text())


def refusal(tmp_path: Path, **changes) -> str:
    """Returns the one-line error of a fetch that must fail within 10 s and leave no output."""
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"`base\.\w+`: '") as caught:
        fetch(tmp_path, **changes)
    assert time.monotonic() - start < 10
    assert not list(tmp_path.glob("base*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("where", "status", "headers", "said"),
    [
        ("api", 401, NO_NAME, r"not found \(401\): check the name; .*set HF_TOKEN"),
        ("api", 401, {}, r".*token.* \(401\): set HF_TOKEN"),
        ("files", 401, {}, r".*token.* \(401\): set HF_TOKEN"),
        ("api", 403, {}, r"no permission \(403\): set HF_TOKEN"),
        ("files", 403, {}, r"no permission \(403\)"),
        ("api", 404, NO_NAME, r"not found \(404\): check the name"),
        ("api", 404, {}, r"not found \(404\): check the name"),
        ("files", 401, GATED, r"gated \(401\): .*http://.*/someone/tiny, .*HF_TOKEN"),
        ("files", 403, GATED, r"gated \(403\): .*http://.*/someone/tiny, .*HF_TOKEN"),
        ("api", 429, {"Retry-After": "300"}, r"too many requests \(429\): wait 300 s, .*HF_TOKEN"),
        ("files", 429, {"Retry-After": "3600"}, r"too many requests \(429\): wait 3600 s"),
        ("files", 429, {"RateLimit": '"resolvers";r=0;t=299'}, r"too many requests \(429\): wait 299 s"),
        ("api", 503, {}, r".*503: run .* again"),
    ],
)
def test_every_hub_error_has_a_cause_and_a_remedy(hub, tmp_path, where, status, headers, said) -> None:
    hub.refusals[where] = (status, headers)
    assert re.search(rf"^`base.hub`: 'someone/tiny'.*: {said}", refusal(tmp_path))


def test_unknown_and_invalid_repository_names_differ(hub, tmp_path) -> None:
    assert "'someone/gone': not found (401)" in refusal(tmp_path, hub="someone/gone")
    assert "`base.clip`: 'someone/gone': not found (401)" in refusal(tmp_path, clip="someone/gone")
    assert "wanted owner/name" in refusal(tmp_path, hub="a/folder/that/is/not")


def test_errors_with_a_token_are_about_the_token(hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.refusals["api"] = (403, {})
    assert "no permission (403): the token in HF_TOKEN" in refusal(tmp_path)
    assert re.search(r"not found \(404\): check the name; .*the token in HF_TOKEN", refusal(tmp_path, hub="someone/gone"))
    hub.token = "hf_right"
    assert re.search(r"token.* \(401\): set HF_TOKEN .*http.*/settings/tokens", refusal(tmp_path))


def test_a_missing_revision_is_named(hub, tmp_path) -> None:
    assert re.search(
        r"'someone/tiny' at 'v9': no such revision \(404\): .*http.*/commits/main", refusal(tmp_path, revision="v9")
    )
    said = refusal(tmp_path, vae="someone/vae@v9")
    assert re.search(r"`base.vae`: 'someone/vae' at 'v9': no such revision", said)


def test_unreachable_hub_and_wrong_server_differ(hub, tmp_path, monkeypatch) -> None:
    for where in ("files", "api"):
        hub.refusals = {where: (200, {})}  # like the login page of a guest network
        assert re.search(rf"{hub.url} answers, .*check HF_ENDPOINT", refusal(tmp_path))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert re.search(r"http://127.0.0.1:\d+.* \(ConnectError\): check the network, .*HF_HUB_OFFLINE=1", refusal(tmp_path))


def test_a_hub_that_never_answers_times_out(tmp_path, hub, monkeypatch) -> None:
    monkeypatch.setattr(t2i.fetch.hub, "_ANSWER_WITHIN_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert re.search(r"interrupted \(ReadTimeout\): run .* again", refusal(tmp_path))


def test_an_interrupted_file_is_resumed(hub, tmp_path, tiny_base, monkeypatch) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cuts[weights] = 1
    fetch(tmp_path)
    assert (tmp_path / "base" / weights).read_bytes() == (tiny_base / weights).read_bytes()
    half = (tiny_base / weights).stat().st_size // 2
    assert [span for _, path, span in hub.asked if path.endswith(weights) and span] == [f"bytes={half // 1000 * 1000}-"]


def test_complete_files_are_not_downloaded_again(hub, tmp_path) -> None:
    hub.cuts["unet/diffusion_pytorch_model.safetensors"], hub.resets = 1, True
    assert re.search(r"'someone/tiny' at '[0-9a-f]{40}': .*interrupted \(ReadError\): run .* again", refusal(tmp_path))
    before = set(hub.downloads())
    hub.asked.clear()
    assert fetch(tmp_path)["commit"] == COMMIT
    again = [path for path in hub.downloads() if path in before and path.endswith((".json", ".txt", ".safetensors"))]
    assert again == ["unet/diffusion_pytorch_model.safetensors"]


def test_vae_and_clip_are_pinned_to_commits(hub, tmp_path) -> None:
    origin = fetch(tmp_path, revision="v1", vae="someone/vae@v1", clip=f"someone/clip@{COMMIT}")
    assert origin == {"source": "someone/tiny", "commit": COMMIT, "vae_source": "someone/vae", "vae_commit": COMMIT}
    assert json.loads((tmp_path / "clip/source.json").read_text()) == {"source": "someone/clip", "commit": COMMIT}
    revisions = {path.rpartition("/revision/")[2] for _, path, _ in hub.asked if "/revision/" in path}
    assert revisions == {"v1"}


@pytest.fixture
def dataset(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """A Hub with a dataset of four images."""
    hub.repositories["datasets/someone/squares"] = tiny.make_images(tmp_path / "images", 4)
    return hub


def opened(tmp_path: Path, **changes) -> Dataset:
    columns = {"image_column": "image", "caption_column": "text", "config": None, "split": "train", "max_rows": None}
    named = {"name": "hub", "id": "someone/squares", "revision": None, "streaming": False}
    return source.open_source(source.Source(**(columns | named | changes)), tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_is_read_at_the_commit_of_its_revision(dataset, tmp_path, streaming) -> None:
    found = opened(tmp_path, streaming=streaming, revision="v1")
    assert found.description == {"source": "someone/squares", "split": "train", "commit": COMMIT}
    wanted = {((tmp_path / "images" / f"{n:04d}.png").read_bytes(), (f"square {n}",)) for n in range(4)}
    assert {(record.read(), record.captions) for record in found.records} == wanted


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("where", "status", "headers", "said"),
    [
        ("api", 401, NO_NAME, r"not found \(401\): check the name; .*set HF_TOKEN"),
        ("api", 429, {"Retry-After": "300"}, r"too many requests \(429\): wait 300 s"),
        ("files", 403, GATED, r"gated \(403\): .*http://.*/datasets/someone/squares, .*HF_TOKEN"),
        ("files", 403, {}, r"no permission \(403\): set HF_TOKEN"),
        ("files", 429, {"Retry-After": "300"}, r"too many requests \(429\): wait 300 s"),
    ],
)
def test_dataset_errors_have_a_cause_and_a_remedy(dataset, tmp_path, where, status, headers, said, streaming) -> None:
    dataset.refusals[where] = (status, headers)
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"^`fetch.source(.id)?`: .*someone/squares.*: {said}") as caught:
        list(opened(tmp_path, streaming=streaming).records)
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)


def test_a_missing_revision_of_a_dataset_is_named(dataset, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"`fetch.source.id`: 'someone/squares' at 'v9': no such revision \(404\)"):
        opened(tmp_path, revision="v9")


def test_a_hub_error_ends_the_stream(dataset, tmp_path) -> None:
    records = opened(tmp_path, streaming=True).records
    assert next(records).read().startswith(b"\x89PNG")
    dataset.refusals["files"] = (403, {})
    with pytest.raises(ValueError, match=r"^`fetch.source`: someone/squares, near row 1 of train: no permission \(403\)"):
        next(records)


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_cached_dataset_is_read_offline(dataset, tmp_path, monkeypatch, revision) -> None:
    online = {record.read() for record in opened(tmp_path, revision=revision).records}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    dataset.asked.clear()
    assert {record.read() for record in opened(tmp_path, revision=revision).records} == online
    assert not dataset.asked
