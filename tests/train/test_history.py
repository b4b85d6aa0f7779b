import pytest
import torch

from t2i.train.history import Figures, History


def test_windows_are_means_and_the_last_may_be_short() -> None:
    history = History()
    for step in range(5):
        history.append(Figures(torch.tensor(float(step)), torch.tensor(1.0), torch.tensor(2.0), 0.5))
    assert history.csv(2).splitlines() == [
        "step,loss,mse,grad_norm,learning_rate",
        "2,0.5,1,2,0.5",
        "4,2.5,1,2,0.5",
        "5,4,1,2,0.5",
    ]


def test_a_history_resumes_from_a_checkpoint() -> None:
    whole, first = History(), History()
    rows = torch.rand(6, 4)
    for row in rows:
        whole.append(Figures(row[0], row[1], row[2], row[3].item()))
    for row in rows[:3]:
        first.append(Figures(row[0], row[1], row[2], row[3].item()))
    second = History(first.tensor())
    for row in rows[3:]:
        second.append(Figures(row[0], row[1], row[2], row[3].item()))
    assert second.csv(4) == whole.csv(4)


def test_a_non_finite_loss_names_its_step() -> None:
    history = History()
    for loss in (1.0, float("nan")):
        history.append(Figures(torch.tensor(loss), torch.tensor(0.0), torch.tensor(0.0), 0.0))
    with pytest.raises(ValueError, match=r"step 2: .*nan.*: lower `train.learning_rate`"):
        history.rows()
