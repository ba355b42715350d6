"""The case: copies, validation, and everything that a report refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.core import errors
from hesse.report.case import Settings, make_case
from hesse.report.user_code import UserCodeError

from .small import classifier, images

LOSS = nn.CrossEntropyLoss()


def test_the_case_holds_copies_and_facts() -> None:
    model, (x, y) = classifier(), images()
    case = make_case(model, LOSS, (x, y), Settings())
    assert case.model is not model
    assert (case.samples, case.batches) == (14, 1)
    assert case.value == pytest.approx(LOSS(model(x), y).item())
    assert 0 < case.gradient_seconds < 10
    assert case.labels is not None
    assert case.labels.tolist() == y.tolist()


def test_dtype_reaches_model_loss_and_data() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]))
    case = make_case(classifier(), loss, (*images(),), Settings(dtype=torch.float64))
    assert case.model[0].weight.dtype == case.batch[0].dtype == case.loss.weight.dtype == torch.float64
    assert case.batch[1].dtype == torch.int64


def test_dtype_reaches_every_batch_of_a_data_set() -> None:
    x, y = images()
    case = make_case(classifier(), LOSS, [(x[:5], y[:5]), (x[5:], y[5:])], Settings(dtype=torch.float64))
    assert case.batches == 2
    assert [(len(b[0]), b[0].dtype) for b in case.data] == [(5, torch.float64), (9, torch.float64)]
    assert case.samples == 5


def test_a_data_loader_is_a_data_set() -> None:
    case = make_case(classifier(), LOSS, DataLoader(TensorDataset(*images()), batch_size=4), Settings())
    assert (case.samples, case.batches) == (4, 4)


def test_some_samples_are_spread_evenly_and_keep_their_order() -> None:
    case = make_case(classifier(), LOSS, images(), Settings())
    index, (x, y) = case.some_samples(5)
    assert index.tolist() == [0, 3, 6, 10, 13]
    assert torch.equal(x, images()[0][index])
    assert torch.equal(y, images()[1][index])
    assert case.some_samples(99)[0].tolist() == list(range(14))


def test_generators_start_anew() -> None:
    case = make_case(classifier(), LOSS, images(), Settings(seed=5))
    first, second = (torch.randn(3, generator=case.generator()) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, torch.randn(3, generator=torch.Generator().manual_seed(5)))


def test_targets_that_are_no_labels() -> None:
    x, _ = images()
    case = make_case(classifier(), nn.MSELoss(), (x, torch.zeros(14, 3)), Settings())
    assert case.labels is None


class _Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)  # images of 6 x 5 pixels do not fit


def _nan_images() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = images()
    x[3, 0, 2, 2] = torch.nan
    return x, y


def _with(name: str) -> nn.Module:
    layers = {"dropout": nn.Dropout(0.5), "norm": nn.BatchNorm1d(48)}
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), layers[name], nn.Linear(48, 3))


REFUSED = {
    "empty batch": (classifier, LOSS, lambda: images(0), errors.DataError, "batch of size 0"),
    "no batch": (classifier, LOSS, list, errors.DataError, "no batch"),
    "no data": (classifier, LOSS, lambda: 3, errors.DataError, "a int as data"),
    "uneven": (classifier, LOSS, lambda: (images()[0], images(9)[1]), errors.DataError, "9 rows where"),
    "generator": (classifier, LOSS, lambda: iter([images()]), errors.OneShotDataError, r"pass list\(data\)"),
    "nan": (classifier, LOSS, _nan_images, errors.NonFiniteError, "first in sample 3"),
    "infinite loss": (classifier, lambda o, t: o.sum() / 0, images, errors.NonFiniteError, "the loss is -?inf"),
    "not scalar": (classifier, nn.CrossEntropyLoss(reduction="none"), images, errors.NonScalarError, r"\(14,\).*\.mean\(\)"),
    "no tensor": (classifier, lambda o, t: 3.0, images, errors.NonScalarError, "a float"),
    "detached": (classifier, lambda o, t: o.detach().sum(), images, errors.DetachedError, "the graph was cut by `detach`"),
    "dropout": (lambda: _with("dropout"), LOSS, images, errors.NondeterministicError, r"train mode: 2\).*model\.eval\(\)"),
    "batch norm": (lambda: _with("norm"), LOSS, images, errors.MixedSamplesError, r"'2' \(BatchNorm1d\).*eval"),
    "frozen": (lambda: classifier().requires_grad_(False), LOSS, images, errors.LeafError, "unfreeze"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_reported_on_is_refused(name: str) -> None:
    model, loss, data, error, message = REFUSED[name]
    with pytest.raises(error, match=f"(?s){message}"):
        make_case(model(), loss, data(), Settings())


def test_what_the_model_or_the_data_raises_is_the_users() -> None:
    with pytest.raises(UserCodeError, match="computing the loss of the model on the batch: RuntimeError"):
        make_case(_Broken(), LOSS, images(), Settings())

    class Data:
        def __iter__(self):
            raise OSError("disk")

    with pytest.raises(UserCodeError, match="reading the data: OSError: disk"):
        make_case(classifier(), LOSS, Data(), Settings())
