import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from t2i.data.cached import CachedRecords
from t2i.model.denoising import denoising_errors, fixed_records, timestep_grid
from t2i.model.families.stable_diffusion import Family


def test_the_grid_has_the_middles_of_equal_parts() -> None:
    assert timestep_grid(1000, 4) == [125, 375, 625, 875]
    assert timestep_grid(1000, 1) == [500]


def test_errors_match_diffusers_for_any_batch_size(project) -> None:
    project.fetch_and_encode()
    base = project.folder / "data/base"
    family, records = Family(base), CachedRecords(project.folder / "data/latents", project.folder / "data/embeds", "heldout")
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    fixed = fixed_records(records, 3, 0, family.view_conditioning)
    errors = denoising_errors(unet, family, fixed, 2, 7, precision="fp32", batch_size=4, device="cpu")
    assert errors.shape == (3, 2)
    one_by_one = denoising_errors(unet, family, fixed, 2, 7, precision="fp32", batch_size=1, device="cpu")
    torch.testing.assert_close(errors, one_by_one, rtol=1e-4, atol=0)
    alone = denoising_errors(unet, family, fixed[1:2], 2, 7, precision="fp32", batch_size=4, device="cpu")
    torch.testing.assert_close(errors[1:2], alone, rtol=1e-4, atol=0)
    rounded = denoising_errors(unet, family, fixed, 2, 7, precision="bf16", batch_size=4, device="cpu")
    torch.testing.assert_close(errors, rounded, rtol=2e-2, atol=0)

    scheduler, kept = DDPMScheduler.from_pretrained(base, subfolder="scheduler"), {}

    class Spy(torch.nn.Module):
        def forward(self, noisy_latents, timesteps, **conditioning):
            kept.update(noisy=noisy_latents, timesteps=timesteps, conditioning=conditioning)
            kept["prediction"] = unet(noisy_latents, timesteps, **conditioning)[0]
            return (kept["prediction"],)

    spied = denoising_errors(Spy(), family, fixed[:1], 2, 7, precision="fp32", batch_size=2, device="cpu")
    mean = fixed[0].moments.float().chunk(2)[0] * family.scaling_factor
    a = scheduler.alphas_cumprod[kept["timesteps"]].view(-1, 1, 1, 1)
    noise = (kept["noisy"] - a.sqrt() * mean) / (1 - a).sqrt()
    theirs = (kept["prediction"] - noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(spied[0].float(), theirs.detach(), rtol=1e-3, atol=0)


def test_the_seed_chooses_the_records(project) -> None:
    project.fetch_and_encode()
    family = Family(project.folder / "data/base")
    records = CachedRecords(project.folder / "data/latents", project.folder / "data/embeds", "train")

    def keys(most: int, seed: int) -> list[str]:
        return [record.key for record in fixed_records(records, most, seed, family.view_conditioning)]

    assert keys(5, 0) == keys(9, 0)[:5]
    assert keys(5, 0) != keys(5, 1)
    assert len(keys(10_000, 0)) == len(records)
