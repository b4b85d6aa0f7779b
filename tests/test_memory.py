import pytest
import torch

from t2i.memory import at_most
from t2i.sections import load_sections
from tests.conftest import Project


def test_more_memory_than_there_is_is_an_error_and_the_limit_goes_again(project: Project) -> None:
    runtime = load_sections(project.folder / "params.yaml").runtime
    with at_most(2**20, runtime), pytest.raises(RuntimeError, match="allocate"):
        torch.empty(2**28)
    assert torch.empty(2**28).numel() == 2**28
