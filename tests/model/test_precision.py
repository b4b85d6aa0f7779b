import pytest
import torch

from t2i.model.precision import computing_in


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_use_the_precision_and_weights_stay_fp32(precision, dtype) -> None:
    layer = torch.nn.Linear(4, 4)
    with computing_in(precision, "cpu"):
        assert layer(torch.ones(2, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32
