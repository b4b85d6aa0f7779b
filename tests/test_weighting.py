import pytest
import torch

from t2i.weighting import MinSnr, Uniform, loss_weights

SNR = torch.logspace(-4, 4, 200)


def test_weights_of_all_prediction_types_are_one_weight_on_the_latents() -> None:
    weighting = MinSnr(name="min_snr", gamma=5.0)
    epsilon, v = (loss_weights(SNR, kind, weighting) for kind in ("epsilon", "v_prediction"))
    torch.testing.assert_close(epsilon * SNR, v * (SNR + 1))


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_clips_at_gamma(gamma) -> None:
    weights = loss_weights(SNR, "epsilon", MinSnr(name="min_snr", gamma=gamma))
    torch.testing.assert_close(weights[gamma >= SNR], torch.ones_like(SNR)[gamma >= SNR])
    torch.testing.assert_close(weights[gamma < SNR], gamma / SNR[gamma < SNR])


def test_min_snr_is_the_formula_of_the_diffusers_script() -> None:
    clipped = torch.stack([SNR, 5.0 * torch.ones_like(SNR)], dim=1).min(dim=1)[0]
    weighting = MinSnr(name="min_snr", gamma=5.0)
    torch.testing.assert_close(loss_weights(SNR, "epsilon", weighting), clipped / SNR)
    torch.testing.assert_close(loss_weights(SNR, "v_prediction", weighting), clipped / (SNR + 1))


def test_uniform_is_one_for_any_prediction_type() -> None:
    for kind in ("epsilon", "v_prediction"):
        assert (loss_weights(SNR, kind, Uniform(name="uniform")) == 1).all()
