import pytest

from t2i.model.layout import parts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", "", r"`base.local` .*\.safetensors"),
        ("pytorch_lora_weights.safetensors", "", r"LoRA weights"),
        ("adapter_config.json", "{}", r"LoRA weights"),
        ("config.json", '{"_class_name": "ControlNetModel"}', r"a single ControlNetModel"),
    ],
)
def test_what_is_not_a_pipeline_is_named(tmp_path, name, content, said) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"model_index.json: missing: .*{said}"):
        parts(tmp_path)
