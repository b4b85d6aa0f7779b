"""Synthetic caches of the size of Stable Diffusion 1.5 at 512 px: random moments and random embeddings of one caption."""

from pathlib import Path

import numpy as np
import torch

from t2i.data.batches import Batches
from t2i.data.cached import CachedRecords
from t2i.data.manifest import describe, write_manifest
from t2i.data.order import Global
from t2i.data.shards import pack, write_shard
from t2i.data.storage import File

MOMENTS, TEXT = (1, 8, 64, 64), (1, 77, 768)
RECORD_BYTES = 2 * (8 * 64 * 64 + 77 * 768)
"""What a batch reads of a record: moments and embeddings in float16."""


def write_caches(folder: Path, records: int, per_shard: int = 512) -> tuple[Path, Path]:
    """Writes caches of training records; returns the folders of the moments and of the embeddings."""
    latents, embeds = folder / "latents", folder / "embeds"
    generator = torch.Generator().manual_seed(0)
    rows: dict[Path, list[File]] = {latents: [], embeds: []}
    for path in rows:
        path.mkdir(parents=True)
    pairs, flipped = torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, dtype=torch.uint8)
    for first in range(0, records, per_shard):
        images, texts = {}, {}
        for number in range(first, min(first + per_shard, records)):
            key = f"{number:016x}"
            image = {"moments": torch.randn(MOMENTS, generator=generator), "original_size": pairs, "crop": pairs.clone()}
            images[key] = ("safetensors", pack(image | {"flipped": flipped}, key))
            texts[key] = ("safetensors", pack({"encoder_hidden_states": torch.randn(TEXT, generator=generator)}, key))
        name = f"train-{first // per_shard:05d}.tar"
        rows[latents] += write_shard(latents / name, images)
        rows[embeds] += write_shard(embeds / name, texts)
    (embeds / "empty.safetensors").write_bytes(pack({"encoder_hidden_states": torch.zeros(TEXT)}, "empty"))
    rows[embeds].append(describe(embeds / "empty.safetensors", 1))
    for path, its in rows.items():
        write_manifest(path, its, {})
    return latents, embeds


def batches_of(records: CachedRecords, batch_size: int) -> Batches:
    """Returns batches with uniform timesteps and a tenth of the prompts dropped, as the presets have them."""
    return Batches(
        records,
        view_conditioning=lambda geometry, latents: {},
        order=Global(name="global"),
        batch_size=batch_size,
        use_flips=True,
        prompt_dropout=0.1,
        timesteps_at=lambda uniform: (uniform * 1000).astype(np.int64),
        noise_offset=0.0,
        input_perturbation=0.0,
        seed=0,
    )
