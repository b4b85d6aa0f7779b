import pytest

from t2i.core.params import ParamsError
from t2i.model.family import Family, check_base, load_family


def test_an_unknown_family_lists_the_families(tiny_base) -> None:
    with pytest.raises(ParamsError, match="did you mean `stable_diffusion`"):
        load_family("stable_difusion", tiny_base)
    with pytest.raises(ParamsError, match=r"`base.family`: .*stable_diffusion"):
        check_base("sdxxl", tiny_base)


def test_every_family_implements_the_protocol(tiny_base, tiny_sdxl) -> None:
    assert isinstance(load_family("stable_diffusion", tiny_base), Family)
    assert isinstance(load_family("sdxl", tiny_sdxl), Family)


def test_each_family_names_the_other(tiny_base, tiny_sdxl) -> None:
    check_base("sdxl", tiny_sdxl)
    with pytest.raises(ValueError, match=r"StableDiffusionXLPipeline .*`base.family: sdxl`"):
        check_base("stable_diffusion", tiny_sdxl)
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline .*`base.family: stable_diffusion`"):
        check_base("sdxl", tiny_base)
