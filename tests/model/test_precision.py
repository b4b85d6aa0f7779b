import pytest
import torch

from t2i.model.precision import computing_in, without_overflows


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_use_the_precision_and_weights_stay_fp32(precision, dtype) -> None:
    layer = torch.nn.Linear(4, 4)
    with computing_in(precision, "cpu"):
        assert layer(torch.ones(2, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_rows_that_overflow_fp16_are_replaced_in_all_tensors() -> None:
    computed = {"a": torch.tensor([[1.0, 2.0], [70000.0, 1.0], [3.0, 4.0]]), "b": torch.tensor([[1.0], [2.0], [torch.nan]])}
    exact = {name: torch.full_like(tensor, 9.0) for name, tensor in computed.items()}
    found = without_overflows({name: tensor.bfloat16() for name, tensor in computed.items()}, lambda: exact)
    assert found["a"].tolist() == [[1.0, 2.0], [9.0, 9.0], [9.0, 9.0]]
    assert found["b"].tolist() == [[1.0], [9.0], [9.0]]
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_nothing_is_computed_again_without_an_overflow() -> None:
    computed = {"a": torch.ones(2, 3, 1, 1)}
    assert without_overflows(computed, dict)["a"].equal(computed["a"])
