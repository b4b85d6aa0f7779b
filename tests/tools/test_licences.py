import pytest

from t2i.tools.licences import Origin, base_origin, dataset_origin, identifier, licence_notes, published_licence
from tests.fake_hub import COMMIT, serving


def origins(base: str | None, dataset: str | None) -> list[Origin]:
    return [Origin("base", "a", None, False, base, None), Origin("dataset", "b", None, False, dataset, None)]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("CC BY-SA 4.0", "cc-by-sa-4.0"), ("mit", "mit"), ("OpenRAIL++", "openrail++"), ("my own", None), ("other", None)],
)
def test_words_become_an_identifier_of_the_hub(words, wanted) -> None:
    assert identifier(words) == wanted


@pytest.mark.parametrize(
    ("base", "dataset", "chosen", "wanted"),
    [
        ("cc-by-sa-4.0", "CC BY-SA 4.0", None, "cc-by-sa-4.0"),
        ("creativeml-openrail-m", "cc0-1.0", None, "other"),
        ("my own", "my own", None, "other"),
        (None, "mit", None, "unknown"),
        ("mit", None, None, "unknown"),
        (None, None, "apache-2.0", "apache-2.0"),
    ],
)
def test_the_licence_is_the_one_that_both_have(base, dataset, chosen, wanted) -> None:
    assert published_licence(origins(base, dataset), chosen) == wanted


def test_notes_name_what_is_unknown_and_what_differs() -> None:
    assert licence_notes(origins("mit", "MIT"), "mit") == []
    base, model = licence_notes(origins(None, "mit"), "unknown")
    assert "of the base is not known" in base
    assert "--license" in model
    (differ,) = licence_notes(origins("creativeml-openrail-m", "cc0-1.0"), "other")
    assert all(part in differ for part in ("creativeml-openrail-m", "cc0-1.0", "--license"))
    assert len(licence_notes(origins(None, None), "mit")) == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Copyright\nCreativeML Open RAIL++-M License", "openrail++"),
        ("CreativeML Open RAIL-M", "creativeml-openrail-m"),
        ("Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        ("shared under CC BY-SA 4.0", "cc-by-sa-4.0"),
        ("All rights reserved", None),
    ],
)
def test_the_text_beside_a_base_names_its_licence(tmp_path, text, wanted) -> None:
    (tmp_path / "LICENSE.md").write_text(text)
    assert base_origin(tmp_path, {"source": "base/tiny", "commit": None}, hub=False).licence == wanted


def test_the_hub_says_the_licence_of_base_and_dataset(tmp_path, monkeypatch) -> None:
    (tmp_path / "repository").mkdir()
    with serving() as hub:
        hub.point_here(monkeypatch, tmp_path / "cache")
        hub.repositories |= {"models/owner/base": tmp_path / "repository", "datasets/owner/data": tmp_path / "repository"}
        hub.licences = {"owner/base": "creativeml-openrail-m", "owner/data": "cc0-1.0"}
        base = base_origin(tmp_path, {"source": "owner/base", "commit": COMMIT}, hub=True)
        dataset = dataset_origin({"source": "owner/data", "commit": COMMIT}, hub=True)
        assert (base.licence, dataset.licence) == ("creativeml-openrail-m", "cc0-1.0")
        assert [path for _, path, _ in hub.asked if COMMIT in path] == [
            f"/api/models/owner/base/revision/{COMMIT}",
            f"/api/datasets/owner/data/revision/{COMMIT}",
        ]
        assert dataset.page == "https://huggingface.co/datasets/owner/data"
        hub.licences = {"owner/base": "other"}
        assert base_origin(tmp_path, {"source": "owner/base", "commit": COMMIT}, hub=True).licence is None
    assert base_origin(tmp_path, {"source": "owner/base", "commit": COMMIT}, hub=True).licence is None  # no answer


def test_a_local_base_is_never_asked_for(tmp_path, monkeypatch) -> None:
    with serving() as hub:
        hub.point_here(monkeypatch, tmp_path / "cache")
        assert base_origin(tmp_path, {"source": "base/tiny", "commit": None}, hub=False).licence is None
        assert hub.asked == []
