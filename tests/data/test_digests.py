import shutil
from pathlib import Path

import pytest

from t2i.data import digests
from t2i.data.digests import PACKAGE, code_digest
from t2i.encode import captions, images
from t2i.train import loop
from tests.pipeline import STAGES, declared

NOT_DECISIVE = {
    # Each is listed by the stage in dvc.yaml, and no number of a checkpoint or shard depends on it.
    "core/files.py": "how files take their names",
    "core/locks.py": "who may write",
    "core/params.py": "how parameters are read; their values are in the fingerprint",
    "core/signals.py": "how a run is stopped",
    "data/caches.py": "refuses what does not fit",
    "data/digests.py": "names the work folder",
    "data/manifest.py": "describes files",
    "data/pixels.py": "train: decodes pictures for trackers alone",
    "encode/roundtrip.py": "measures what was encoded",
    "model/base.py": "a section",
    "model/launch.py": "a launcher",
    "model/latents.py": "encode: used to decode back alone",
    "model/prediction.py": "encode: two words",
    "model/runtime.py": "untracked by definition",
    "train/card.py": "the model card",
    "train/pace.py": "what the progress bar shows",
    "train/trackers.py": "what is logged",
}
KINDS = {"train": loop.DECIDED_BY, "encode-images": images.DECIDED_BY, "encode-captions": captions.DECIDED_BY}


@pytest.mark.parametrize("stage", KINDS)
def test_every_file_of_a_stage_decides_its_result_or_not(stage) -> None:
    files = {name.removeprefix("t2i/") for name in declared(stage) if name.startswith("t2i/") and "${" not in name}
    decisive = set(KINDS[stage])
    assert decisive <= files
    assert files - decisive <= set(NOT_DECISIVE)


def test_every_file_that_is_left_out_is_one_of_a_stage() -> None:
    listed = {name.removeprefix("t2i/") for stage in STAGES for name in declared(stage)}
    assert set(NOT_DECISIVE) <= listed


def test_a_code_digest_depends_on_listed_files_alone(tmp_path, monkeypatch) -> None:
    package = Path(shutil.copytree(PACKAGE, tmp_path / "t2i", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(digests, "PACKAGE", package)
    before = code_digest(loop.DECIDED_BY)
    for other in ("train/trackers.py", "model/launch.py", "evaluate/metrics.py"):
        (package / other).write_text("changed = True\n")
    (package / "train/engines").mkdir()
    (package / "train/engines/other.py").write_text("added = True\n")
    assert code_digest(loop.DECIDED_BY) == before
    (package / "train/ema.py").write_text("changed = True\n")
    assert code_digest(loop.DECIDED_BY) != before


def test_a_code_digest_does_not_depend_on_what_is_imported() -> None:
    import t2i.tools.doctor  # noqa: F401

    assert code_digest(["train/ema.py", "train/optim.py"]) == code_digest(["train/optim.py", "train/ema.py"])
