"""Usage: the code that draws an image with a model, for model cards."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from t2i.model.precision import DTYPES, Precision

_CODE = """{imports}from diffusers import {classes}

pipeline = {pipeline}.{loading}{dtype})
{then}image = pipeline({arguments}).images[0]
image.save("image.png")"""


def drawing_code(
    pipeline: str,
    origin: Mapping[str, Any] | str,
    precision: Precision,
    prompt: str,
    settings: Mapping[str, Any],
    then: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> str:
    """Returns code that draws an image with diffusers.

    Args:
        pipeline: the class of diffusers.
        origin: what it loads: a folder, a name on the Hub, or the source.json of a base.
        precision: that of the weights.
        prompt: what it draws.
        settings: the other arguments of the call.
        then: lines of code between the loading and the drawing.
        classes: of diffusers, which these lines use.
    """
    loaded_as = "" if precision == "fp32" else f", torch_dtype={DTYPES[precision]}"
    words = [json.dumps(prompt, ensure_ascii=False), *(f"{name}={value}" for name, value in settings.items())]
    return _CODE.format(
        imports="import torch\n" if loaded_as else "",
        classes=", ".join(sorted({pipeline, *classes})),
        pipeline=pipeline,
        loading=_loading({"source": origin} if isinstance(origin, str) else origin),
        dtype=loaded_as,
        then="".join(f"{line}\n" for line in then),
        arguments=", ".join(words),
    )


def _loading(origin: Mapping[str, Any]) -> str:
    """Returns the call that loads a pipeline, without its last arguments."""
    source = origin.get("source") or "path/to/the/base"
    if str(source).endswith(".safetensors"):
        return f'from_single_file("{source}", config="{origin.get("config_source") or "path/to/its/configuration"}"'
    further = {"revision": origin.get("commit"), "variant": origin.get("variant"), "use_safetensors": True}
    return f'from_pretrained("{source}", ' + ", ".join(f"{name}={value!r}" for name, value in further.items() if value)
