"""A warning, on the embedded base: a run that learns twenty pictures by heart is told so."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from ruamel.yaml import YAML

from stages import encode, evaluate, fetch, train

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "base/openmoji/unet/diffusion_pytorch_model.safetensors"


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded base has no weights here")
def test_a_run_on_twenty_records_is_called_overfitting(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["base"] |= {"local": str(ROOT / "base/openmoji"), "clip": str(ROOT / "base/openmoji/clip")}
    params["fetch"] |= {"max_train_records": 20, "max_heldout_records": 24}
    params["train"] |= {"steps": 150, "batch_size": 8}
    params["evaluate"] |= {"prompts": 24, "timesteps_per_record": 4, "retention_prompts": [], "num_inference_steps": 4}
    params["sweep"] |= {"guidance_scales": []}
    params["runtime"]["validation"] |= {"every_steps": 1000, "records": 8}
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params, file)
    AcceleratorState._reset_state(reset_partial_state=True)  # as a new process finds it
    for stage in (fetch.base, fetch.dataset, encode.images, encode.captions, train.main):
        stage()
    for stage in (evaluate.base, evaluate.model, evaluate.report):
        stage()
    said = capsys.readouterr().out
    assert "warning: Overfitting" in said
