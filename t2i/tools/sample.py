"""Draws images from prompts, with prompt, seed, settings and model in the metadata of each image."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2i.core.files import whole
from t2i.core.params import load_section
from t2i.data.digests import fingerprint
from t2i.data.records import is_blank, readable
from t2i.encode.views import EncodeImages
from t2i.evaluate.grid import draw_grid
from t2i.evaluate.model import Sweep
from t2i.evaluate.section import Evaluate
from t2i.model.adapter import ADAPTER_FILE
from t2i.model.family import Drawing, Family
from t2i.model.runtime import Runtime
from t2i.model.sampling import Sampler
from t2i.model.tuned import open_tuned, weights_digest


class Model(NamedTuple):
    """A model to draw with."""

    folder: Path
    opened: Callable[[], Family]
    """Opens it."""
    facts: Mapping[str, Any]
    """What else the images state about it."""


def tuned_model(params_file: Path, base: Path, folder: Path, scale: float | None) -> Model:
    """Returns the fine-tuned model in a folder.

    Args:
        params_file: the path of params.yaml.
        base: the base of an adapter.
        folder: a pipeline or an adapter.
        scale: strength of an adapter; None: `sweep.adapter_scale`.

    Raises:
        ValueError: if a pipeline is to be scaled.
    """
    is_adapter = (folder / ADAPTER_FILE).is_file()
    if scale is not None and folder.is_dir() and not is_adapter:
        raise ValueError(f"{folder}: got a scale of {scale:g}, but this is a whole model, not an adapter: leave it out")
    if scale is None:
        scale = load_section(params_file, "sweep", Sweep).adapter_scale
    return Model(
        folder,
        partial(open_tuned, params_file, base, folder, "t2i train", scale),
        {"base": base, "adapter_scale": scale} if is_adapter else {},
    )


def read_prompts(path: Path) -> list[str]:
    """Returns the prompts in a text file, one per line; lines that show nothing are left out.

    Raises:
        ValueError: if the file cannot be read as text in UTF-8, or a line has a NUL character.
    """
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        kind = "in UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else f"not UTF-8 at byte {error.start}"
        raise ValueError(f"{path}: {kind}: save the file as UTF-8") from None
    try:
        return [readable(line, "prompt").strip() for line in lines if not is_blank(line)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def drawing(
    params_file: Path, *, num_inference_steps: int | None, guidance_scale: float | None, negative_prompt: str
) -> Drawing:
    """Returns how images are drawn: as the parameter file says, except for what is given here."""
    section, runtime = load_section(params_file, "evaluate", Evaluate), load_section(params_file, "runtime", Runtime)
    return Drawing(
        num_inference_steps=num_inference_steps or section.num_inference_steps,
        guidance_scale=guidance_scale or section.guidance_scale,
        size_px=load_section(params_file, "encode.images", EncodeImages).size_px,
        precision=section.precision,
        batch_size=runtime.encode_batch_size,
        device=runtime.torch_device(),
        offload=runtime.offload,
        negative_prompt=negative_prompt,
    )


def sample(
    how: Drawing, runtime: Runtime, models: Mapping[str, Model], prompts: Sequence[str], out: Path, *, seed: int, num: int
) -> list[Path]:
    """Draws `num` images of every prompt with every model, and one grid of all images.

    Args:
        how: steps, guidance, size, precision.
        runtime: says which processes share the prompts.
        models: the models, by the name used in the files of their images.
        prompts: the prompts to draw.
        out: the output folder for PROMPT-SEED[-NAME].png and grid.png; other files in it are kept.
        seed: the seed of the first image of each prompt; the next image uses seed + 1. With the same seed, every model
            starts from the same noise.
        num: the number of images per prompt.

    Returns:
        The paths of the images, then the path of the grid.
    """
    wanted = [(prompt, seed + n) for prompt in prompts for n in range(num)]
    drawn, files = dict[str, list[Image.Image]](), list[Path]()
    out.mkdir(parents=True, exist_ok=True)
    for model in models.values():
        model.opened()  # says at once if a model is missing
    for name, model in models.items():
        made_by = {"model": model.folder, "model_sha256": weights_digest(model.folder), **model.facts}
        with Sampler(model.opened, runtime) as sampler:  # one at a time, so that the networks of the model before it are gone
            drawn[name] = sampler.draw(how, [prompt for prompt, _ in wanted], [(its_seed, "") for _, its_seed in wanted])
        end = f"-{name}" if len(models) > 1 else ""
        for (prompt, its_seed), image in zip(wanted, drawn[name], strict=True):
            files.append(out / f"{_slug(prompt)}-{its_seed}{end}.png")
            _write(image, files[-1], _made_by(how, prompt, its_seed, made_by))
    rows = [(f"{prompt} ({its_seed})", [its[at] for its in drawn.values()]) for at, (prompt, its_seed) in enumerate(wanted)]
    with whole(out / "grid.png") as partial:
        draw_grid(rows, list(drawn), partial)
    return [*files, out / "grid.png"]


def _write(image: Image.Image, path: Path, made_by: PngInfo) -> None:
    with whole(path) as partial:
        image.save(partial, "PNG", pnginfo=made_by)


def _made_by(how: Drawing, prompt: str, seed: int, model: Mapping[str, Any]) -> PngInfo:
    facts = (
        {"prompt": prompt, "seed": seed}
        | dict(model)
        | {name: getattr(how, name) for name in ("negative_prompt", "num_inference_steps", "guidance_scale", "precision")}
    )
    info = PngInfo()
    for name, value in facts.items():
        info.add_itxt(name, str(value))
    return info


def _slug(prompt: str) -> str:
    """Returns a prompt as part of a file name. A prompt that this changes gets a hash, so that names do not collide."""
    slug = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:60] or "prompt"
    return slug if slug.replace("-", " ") == prompt else f"{slug}-{fingerprint(prompt)[:6]}"
