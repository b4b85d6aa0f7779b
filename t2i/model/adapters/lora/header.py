"""The header of a LoRA in kohya's layout: what ComfyUI, A1111 and managers of models show, and recognize the base by.

The keys `ss_*` are those of kohya's trainer, the keys `modelspec.*` those of ModelSpec 1.0.1. All values are strings, without
paths and without names of persons.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t2i.model.adapter import Facts
from t2i.model.prediction import PredictionType

if TYPE_CHECKING:
    from t2i.model.adapters.lora.adapter import Adapter

_OPTIMIZERS = {"adamw": "torch.optim.adamw.AdamW", "adamw_8bit": "bitsandbytes.optim.adamw.AdamW8bit"}


def is_sdxl(config: Mapping[str, Any]) -> bool:
    """Returns whether a UNet is Stable Diffusion XL's, from its configuration."""
    return config.get("addition_embed_type") == "text_time"


def header(lora: "Adapter", config: Mapping[str, Any], prediction_type: PredictionType, facts: Facts) -> dict[str, str]:
    """Returns the header.

    Args:
        lora: section `train.adapter`.
        config: configuration of the UNet.
        prediction_type: what the UNet predicts.
        facts: what is stated about the run.
    """
    train, (height, width) = facts.train, facts.size_px
    objective, is_v = train["objective"], prediction_type == "v_prediction"
    weighting, clip_skip = objective["weighting"], int(facts.base.get("clip_skip") or 0)
    version, architecture = _base(config, is_v)
    stated: dict[str, Any] = {
        "ss_v2": version.startswith("sd_v2"),
        "ss_base_model_version": f"{version}{'_v' if is_v else ''}",
        "ss_network_module": "networks.lora",
        "ss_network_dim": lora.rank,
        "ss_network_alpha": lora.alpha,
        "ss_network_args": json.dumps({"conv_dim": lora.rank, "conv_alpha": lora.alpha} if lora.targets == "conv" else {}),
        "ss_output_name": "lora",
        "ss_num_train_images": facts.images,
        "ss_steps": facts.steps,
        "ss_learning_rate": train["learning_rate"],
        "ss_optimizer": _OPTIMIZERS[train["optimizer"]["name"]],
        "ss_resolution": f"({width}, {height})",
        "ss_clip_skip": clip_skip + 1 if clip_skip else None,  # kohya counts from 1
        "ss_seed": train["seed"],
        "ss_noise_offset": objective["noise_offset"] or None,
        "ss_min_snr_gamma": weighting["gamma"] if weighting["name"] == "min_snr" else None,
        "ss_zero_terminal_snr": objective["zero_terminal_snr"],
        "ss_tag_frequency": json.dumps({"dataset": facts.dataset.get("tags", {})}, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models" if is_sdxl(config) else "diffusers",
        "modelspec.title": f"LoRA of {facts.dataset.get('source', 'a dataset')}",
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": "v" if is_v else "epsilon",
    }
    return {key: str(value) for key, value in stated.items() if value is not None}


def _base(config: Mapping[str, Any], is_v: bool) -> tuple[str, str]:
    """Returns kohya's name of the base of a UNet, and ModelSpec's name of its architecture."""
    if is_sdxl(config):
        return "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    if config.get("use_linear_projection"):
        return "sd_v2", "stable-diffusion-v2-768-v" if is_v else "stable-diffusion-v2-512"
    return "sd_v1", "stable-diffusion-v1"
