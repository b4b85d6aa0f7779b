import shutil
from pathlib import Path

import pytest

from t2i.data import digests
from t2i.data.digests import PACKAGE, code_digest
from t2i.encode import captions, images
from t2i.train import loop
from tests.pipeline import declared

ALWAYS = {"core/files.py", "core/locks.py", "core/params.py", "core/signals.py", "data/caches.py", "data/digests.py"}
ALWAYS |= {"core/launcher.py", "core/machine.py", "core/patience.py", "core/workers.py"}
ALWAYS |= {f"data/{name}.py" for name in ("bucket", "copies", "remote", "storage")}
ALWAYS |= {"data/manifest.py", "model/base.py", "model/checks.py", "model/export.py", "model/layout.py", "model/runtime.py"}
"""How files take their names, who writes and works, what is refused; the values of parameters are in the fingerprint."""
NOT_DECISIVE = {
    "train": ALWAYS
    | {
        "data/ahead.py",
        "data/footprint.py",
        "model/launch.py",
        "model/tensor_file.py",
        "model/text.py",
        "model/usage.py",
        "model/vae.py",
        "train/card.py",
        "train/change.py",
        "train/engine.py",
        *(f"train/engines/jax/{name}.py" for name in ("devices", "engine", "network", "settings", "step")),
        "train/group.py",
        "train/pace.py",
        "train/trackers.py",
        "train/verification.py",
        "train/watch.py",
    },  # a family imports all parts of a pipeline, and uses some; a run goes on with another engine
    "encode-images": ALWAYS  # latents: to decode back
    | {"encode/job.py", "encode/part.py", "encode/roundtrip.py", "model/latents.py"}
    | {f"model/{name}.py" for name in ("prediction", "schedule", "text")},
    "encode-captions": ALWAYS
    | {"data/crops.py", "data/pixels.py", "encode/job.py", "encode/part.py"}
    | {f"model/{name}.py" for name in ("prediction", "schedule", "vae")},
}
"""By stage, the files that it lists in dvc.yaml and on which no number of its checkpoints or shards depends."""
KINDS = {"train": loop.DECIDED_BY, "encode-images": images.DECIDED_BY, "encode-captions": captions.DECIDED_BY}


@pytest.mark.parametrize("stage", KINDS)
def test_every_file_of_a_stage_decides_its_result_or_not(stage) -> None:
    files = {name.removeprefix("t2i/") for name in declared(stage) if name.startswith("t2i/") and "${" not in name}
    assert files - set(KINDS[stage]) == NOT_DECISIVE[stage]
    assert set(KINDS[stage]) <= files


def test_a_code_digest_depends_on_listed_files_alone(tmp_path, monkeypatch) -> None:
    package = Path(shutil.copytree(PACKAGE, tmp_path / "t2i", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(digests, "PACKAGE", package)
    before = code_digest(loop.DECIDED_BY)
    for other in ("train/trackers.py", "model/launch.py", "evaluate/metrics.py"):
        (package / other).write_text("changed = True\n")
    (package / "train/engines/other.py").write_text("added = True\n")
    assert code_digest(loop.DECIDED_BY) == before
    (package / "train/ema.py").write_text("changed = True\n")
    assert code_digest(loop.DECIDED_BY) != before


def test_a_code_digest_does_not_depend_on_what_is_imported() -> None:
    import t2i.tools.doctor  # noqa: F401

    assert code_digest(["train/ema.py", "train/optim.py"]) == code_digest(["train/optim.py", "train/ema.py"])
