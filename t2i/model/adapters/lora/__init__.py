"""LoRA: low-rank adapters of the UNet."""
