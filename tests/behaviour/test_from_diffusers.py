"""docs/from-diffusers.md names only parameters that exist, and every option of the script."""

import re
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.projects import ROOT

PAGE = (ROOT / "docs/from-diffusers.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
NAMED = sorted(set(re.findall(rf"`((?:{'|'.join(PARAMS)})(?:\.\w+)+)`", PAGE)))

# The options of train_text_to_image.py and train_text_to_image_sdxl.py.
OPTIONS = [
    "pretrained_model_name_or_path",
    "revision",
    "non_ema_revision",
    "variant",
    "pretrained_vae_model_name_or_path",
    "cache_dir",
    "dataset_name",
    "dataset_config_name",
    "train_data_dir",
    "image_column",
    "caption_column",
    "max_train_samples",
    "resolution",
    "center_crop",
    "random_flip",
    "image_interpolation_mode",
    "dataloader_num_workers",
    "train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_train_steps",
    "seed",
    "learning_rate",
    "scale_lr",
    "lr_scheduler",
    "lr_warmup_steps",
    "use_8bit_adam",
    "adam_beta1",
    "adam_beta2",
    "adam_weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "prediction_type",
    "snr_gamma",
    "noise_offset",
    "input_perturbation",
    "dream_training",
    "dream_detail_preservation",
    "timestep_bias_strategy",
    "proportion_empty_prompts",
    "use_ema",
    "offload_ema",
    "foreach_ema",
    "gradient_checkpointing",
    "allow_tf32",
    "enable_xformers_memory_efficient_attention",
    "mixed_precision",
    "validation_prompts",
    "validation_epochs",
    "num_validation_images",
    "output_dir",
    "logging_dir",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "report_to",
    "tracker_project_name",
    "push_to_hub",
    "hub_token",
    "hub_model_id",
    "rank",
    "train_text_encoder",
    "debug_loss",
    "local_rank",
]


@pytest.mark.parametrize("name", NAMED)
def test_parameters_on_the_page_exist(name) -> None:
    node: Any = PARAMS
    for part in name.split("."):
        assert part in node, name
        node = node[part]


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_the_script_are_on_the_page(option) -> None:
    assert re.search(rf"`--{option}`", PAGE)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"-S '?\+?([\w.]+)=", README))))
def test_parameters_that_readme_sets_exist_or_belong_to_a_choice(name) -> None:
    node: Any = PARAMS
    *above, last = name.split(".")
    for part in above:
        node = node[part]
    assert last in node or "name" in node, name


def test_the_page_names_more_than_40_parameters() -> None:
    assert len(NAMED) > 40
