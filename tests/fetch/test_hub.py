"""The Hub's refusals, each from a real server on this machine (tests/fake_hub.py)."""

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
from t2i.model.base import Base
from tests import tiny
from tests.fake_hub import COMMIT, FakeHub, serving

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
    unset = {"family": "stable_diffusion", "revision": None, "variant": None, "vae": None, "clip_skip": 0}
    base = Base(**(unset | {"hub": "someone/tiny", "local": str(tmp_path), "clip": "someone/clip"} | changes))
    fetch_base(base, tmp_path / "base", tmp_path / "clip")
    return json.loads((tmp_path / "base" / "source.json").read_text())


def refusal(tmp_path: Path, **changes) -> str:
    """The one line that a refused fetch ends with, soon, and with nothing left behind."""
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
        ("api", 401, NO_NAME, r"not found \(401\): check the name; if it is private, set HF_TOKEN"),
        ("api", 401, {}, r"a token is wanted \(401\): set HF_TOKEN"),
        ("files", 401, {}, r"a token is wanted \(401\): set HF_TOKEN"),
        ("api", 403, {}, r"no permission \(403\): who has no token \(HF_TOKEN\) may not read it"),
        ("files", 403, {}, r"no permission \(403\)"),
        ("api", 404, NO_NAME, r"not found \(404\): check the name"),
        ("api", 404, {}, r"not found \(404\): check the name"),
        ("files", 401, GATED, r"gated \(401\): accept its terms at http://.*/someone/tiny, and set HF_TOKEN"),
        ("files", 403, GATED, r"gated \(403\): accept its terms at http://.*/someone/tiny, and set HF_TOKEN"),
        ("api", 429, {"Retry-After": "300"}, r"too many requests \(429\): wait 300 s, and run it again; with HF_TOKEN set"),
        ("files", 429, {"Retry-After": "3600"}, r"too many requests \(429\): wait 3600 s"),
        ("files", 429, {"RateLimit": '"resolvers";r=0;t=299'}, r"too many requests \(429\): wait 299 s"),
        ("api", 503, {}, r"the Hub answered 503: run it again later"),
    ],
)
def test_every_refusal_says_its_cause_and_its_remedy(hub, tmp_path, where, status, headers, said) -> None:
    hub.refusals[where] = (status, headers)
    assert re.search(rf"^`base.hub`: 'someone/tiny'.*: {said}", refusal(tmp_path))


def test_a_name_that_the_hub_has_not_is_told_from_what_is_no_name(hub, tmp_path) -> None:
    assert "'someone/gone': not found (401)" in refusal(tmp_path, hub="someone/gone")
    assert "`base.clip`: 'someone/gone': not found (401)" in refusal(tmp_path, clip="someone/gone")
    assert "neither a folder here nor a name on the Hub: wanted owner/name" in refusal(tmp_path, hub="a/folder/that/is/not")


def test_with_a_token_the_token_is_what_is_spoken_of(hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.refusals["api"] = (403, {})
    assert "no permission (403): the token in HF_TOKEN may not read it" in refusal(tmp_path)
    assert "not found (404): check the name; if it is private, the token in HF_TOKEN" in refusal(tmp_path, hub="someone/gone")
    hub.token = "hf_right"
    assert re.search(r"the token is not known \(401\): set HF_TOKEN to one of http.*/settings/tokens", refusal(tmp_path))


def test_a_revision_that_is_not_there_is_named(hub, tmp_path) -> None:
    assert re.search(r"'someone/tiny' at 'v9': no such revision \(404\): http.*/commits/main", refusal(tmp_path, revision="v9"))
    said = refusal(tmp_path, vae="someone/vae@v9")
    assert re.search(r"`base.vae`: 'someone/vae' at 'v9': no such revision", said)


def test_a_hub_out_of_reach_and_one_that_is_none_are_told_apart(hub, tmp_path, monkeypatch) -> None:
    for where in ("files", "api"):
        hub.refusals = {where: (200, {})}  # as the page to log in at of some network
        assert f"{hub.url} answers, but not as the Hub does: check HF_ENDPOINT, and proxies" in refusal(tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    said = refusal(tmp_path)
    assert re.search(r"http://127.0.0.1:\d+ is out of reach \(ConnectError\): check the network; HF_HUB_OFFLINE=1", said)


def test_a_hub_that_never_answers_is_not_waited_for(tmp_path, hub, monkeypatch) -> None:
    monkeypatch.setattr(t2i.fetch.hub, "_ANSWER_WITHIN_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "broken off (ReadTimeout): run it again" in refusal(tmp_path)


def test_a_file_that_breaks_off_is_resumed_where_it_broke_off(hub, tmp_path, tiny_base, monkeypatch) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cuts[weights] = 1
    fetch(tmp_path)
    assert (tmp_path / "base" / weights).read_bytes() == (tiny_base / weights).read_bytes()
    half = (tiny_base / weights).stat().st_size // 2
    assert [span for _, path, span in hub.asked if path.endswith(weights) and span] == [f"bytes={half // 1000 * 1000}-"]


def test_what_came_whole_before_a_download_broke_off_is_not_fetched_again(hub, tmp_path) -> None:
    hub.cuts["unet/diffusion_pytorch_model.safetensors"], hub.resets = 1, True
    assert re.search(r"'someone/tiny' at '[0-9a-f]{40}': broken off \(ReadError\): run it again; what came", refusal(tmp_path))
    before = set(hub.downloads())
    hub.asked.clear()
    assert fetch(tmp_path)["commit"] == COMMIT
    again = [path for path in hub.downloads() if path in before and path.endswith((".json", ".txt", ".safetensors"))]
    assert again == ["unet/diffusion_pytorch_model.safetensors"]


def test_vae_and_clip_are_pinned_to_the_commit_of_their_revision(hub, tmp_path) -> None:
    origin = fetch(tmp_path, revision="v1", vae="someone/vae@v1", clip=f"someone/clip@{COMMIT}")
    assert origin == {"source": "someone/tiny", "commit": COMMIT, "vae_source": "someone/vae", "vae_commit": COMMIT}
    assert json.loads((tmp_path / "clip/source.json").read_text()) == {"source": "someone/clip", "commit": COMMIT}
    revisions = {path.rpartition("/revision/")[2] for _, path, _ in hub.asked if "/revision/" in path}
    assert revisions == {"v1"}


@pytest.fixture
def dataset(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """The Hub with a dataset of four images."""
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
        ("api", 401, NO_NAME, r"not found \(401\): check the name; if it is private, set HF_TOKEN"),
        ("api", 429, {"Retry-After": "300"}, r"too many requests \(429\): wait 300 s"),
        ("files", 403, GATED, r"gated \(403\): accept its terms at http://.*/datasets/someone/squares, and set HF_TOKEN"),
        ("files", 403, {}, r"no permission \(403\): who has no token \(HF_TOKEN\) may not read it"),
        ("files", 429, {"Retry-After": "300"}, r"too many requests \(429\): wait 300 s"),
    ],
)
def test_a_dataset_that_is_refused_says_the_same(dataset, tmp_path, where, status, headers, said, streaming) -> None:
    dataset.refusals[where] = (status, headers)
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"^`fetch.source(.id)?`: .*someone/squares.*: {said}") as caught:
        list(opened(tmp_path, streaming=streaming).records)
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)


def test_a_revision_that_a_dataset_has_not_is_named(dataset, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"`fetch.source.id`: 'someone/squares' at 'v9': no such revision \(404\)"):
        opened(tmp_path, revision="v9")


def test_an_image_that_the_hub_does_not_give_ends_the_stream_and_is_no_bad_record(dataset, tmp_path) -> None:
    records = opened(tmp_path, streaming=True).records
    assert next(records).read().startswith(b"\x89PNG")
    dataset.refusals["files"] = (403, {})
    with pytest.raises(ValueError, match=r"^`fetch.source`: someone/squares, near row 1 of train: no permission \(403\)"):
        next(records)


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_dataset_that_was_read_once_is_read_offline(dataset, tmp_path, monkeypatch, revision) -> None:
    online = {record.read() for record in opened(tmp_path, revision=revision).records}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    dataset.asked.clear()
    assert {record.read() for record in opened(tmp_path, revision=revision).records} == online
    assert not dataset.asked
