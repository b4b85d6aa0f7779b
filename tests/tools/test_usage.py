import json
from pathlib import Path
from typing import Any

import pytest

from t2i.tools.licences import Origin
from t2i.tools.usage import usage_of
from tests.projects import ADAPTER

BASE = Origin("base", "owner/base", "0123", True, "mit", None)
LOCAL = Origin("base", "tiny", None, False, None, None)


def adapter(folder: Path, *, clip_skip: str | None = None, **about: Any) -> Path:
    (folder / "adapter.json").write_text(json.dumps(ADAPTER | about))
    (folder / "source.json").write_text(json.dumps({"source": "owner/base", "clip_skip": clip_skip}))
    (folder / "pytorch_lora_weights.safetensors").touch()
    return folder


def pipeline(folder: Path, kind: str) -> Path:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return folder


@pytest.mark.parametrize(
    ("kind", "tag"), [("StableDiffusionPipeline", "stable-diffusion"), ("StableDiffusionXLPipeline", "stable-diffusion-xl")]
)
def test_a_pipeline_is_loaded_by_its_class(tmp_path, kind, tag) -> None:
    used = usage_of(pipeline(tmp_path, kind), BASE, "someone/model", "fp16", 'a "red" heart', {"height": 64}, 1.0)
    assert f'{kind}.from_pretrained("someone/model", use_safetensors=True, torch_dtype=torch.float16)' in used.code
    assert 'pipeline("a \\"red\\" heart", height=64)' in used.code
    assert tag in used.metadata["tags"]
    assert "lora" not in used.metadata["tags"]
    assert (used.metadata["base_model"], used.metadata["base_model_relation"]) == ("owner/base", "finetune")
    compile(used.code, "card", "exec")


def test_an_adapter_is_loaded_into_its_base(tmp_path) -> None:
    folder = adapter(tmp_path)
    used = usage_of(folder, BASE, "someone/model", "fp32", "a dog", {"height": 64}, 1.0)
    first, second = 'from_pretrained("owner/base"', 'load_lora_weights("someone/model", weight_name="pytorch_lora_weights'
    assert 0 < used.code.index(first) < used.code.index(second) < used.code.index("a dog")
    assert {"lora", "stable-diffusion"} <= set(used.metadata["tags"])
    assert used.metadata["base_model_relation"] == "adapter"
    assert (tmp_path / used.weights).is_file()
    assert "`lora.safetensors` has the same weights for ComfyUI" in used.says
    assert "alone" not in used.says
    compile(used.code, "card", "exec")


def test_what_an_adapter_needs_besides_is_said(tmp_path) -> None:
    arguments = {"prediction_type": "v_prediction", "clip_sample": False}
    said = {"without_kohya": "it is a DoRA", "mergeable": True, "text_layers": 11}
    folder = adapter(tmp_path, clip_skip="1", scheduler="DDIMScheduler", scheduler_arguments=arguments, **said)
    used = usage_of(folder, BASE, "someone/model", "fp16", "a dog", {}, 1.0)
    assert "from diffusers import DDIMScheduler, StableDiffusionPipeline" in used.code
    assert "pipeline.scheduler.config, prediction_type='v_prediction', clip_sample=False)" in used.code
    assert "alone, since it is a DoRA" in used.says
    assert "`lora.safetensors`" not in used.says
    assert "merge it into the base" in used.says
    assert "`Clip skip` 2" in used.says
    assert "del pipeline.text_encoder.encoder.layers[11:]" in used.code
    scaled = usage_of(folder, BASE, "someone/model", "fp16", "a dog", {}, 0.5)
    assert "at a strength of 0.5" in scaled.says
    assert "pipeline.set_adapters(pipeline.get_active_adapters(), 0.5)" in scaled.code
    compile(used.code, "card", "exec")


def test_a_local_base_is_not_named_in_the_metadata(tmp_path) -> None:
    assert "base_model" not in usage_of(pipeline(tmp_path, "StableDiffusionPipeline"), LOCAL, "x", "fp32", "", {}, 1.0).metadata
    used = usage_of(adapter(tmp_path), LOCAL, "someone/model", "fp32", "a dog", {}, 1.0)
    assert "base_model" not in used.metadata
    assert 'from_pretrained("path/to/tiny"' in used.code


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"model_index\.json: missing"):
        usage_of(tmp_path, BASE, "someone/model", "fp32", "a dog", {}, 1.0)
