"""The layers of a UNet2DConditionModel that LoRA changes, as regular expressions for whole module names."""

from typing import Literal

Targets = Literal["attention", "attention_mlp", "all_linear", "conv"]

_ATTENTION = r"attn[12]\.to_(q|k|v|out\.0)"
_MLP = r"ff\.net\.(0\.proj|2)"
_PROJECTIONS = r"attentions\.\d+\.proj_(in|out)"
_CONV = r"resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers\.0\.conv"

TARGETS: dict[Targets, str] = {
    "attention": rf".*\.({_ATTENTION})",
    "attention_mlp": rf".*\.({_ATTENTION}|{_MLP})",
    "all_linear": rf".*\.({_ATTENTION}|{_MLP}|{_PROJECTIONS})",
    "conv": rf".*\.({_ATTENTION}|{_MLP}|{_PROJECTIONS}|{_CONV})",
}
"""`all_linear` are the layers of kohya's LoRA, and `conv` those of kohya's LoRA with `conv_dim`."""
