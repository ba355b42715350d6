"""What the training examples share: confusion matrices, batches, command line."""

from __future__ import annotations

import sys

import torch


def test_confusion_counts_rows_as_labels(example) -> None:
    module = example("training")
    called, labels = torch.tensor([2, 0, 2, 1, 2]), torch.tensor([2, 1, 1, 1, 0])
    scores = torch.nn.functional.one_hot(called, 3).double()
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for label, call in zip(labels.tolist(), called.tolist(), strict=True):
        expected[label, call] += 1
    assert torch.equal(module.confusion(scores, labels), expected) and not torch.equal(expected, expected.T)
    assert module.accuracy(scores, labels) == 2 / 5


def test_batches_hold_each_sample_at_most_once(example) -> None:
    module = example("training")
    x, y = torch.arange(11.0)[:, None], torch.arange(11)
    drawn = list(module.batches((x, y), 4, torch.Generator().manual_seed(0)))
    assert [len(labels) for _, labels in drawn] == [4, 4]
    assert all(torch.equal(rows[:, 0].long(), labels) for rows, labels in drawn)
    assert len(torch.cat([labels for _, labels in drawn]).unique()) == 8


def test_rows_are_the_images(example) -> None:
    (rows, labels), (test_rows, test_labels) = example("training").load_rows()
    assert rows.shape == (1437, 64) and test_rows.shape == (360, 64) and len(labels) == 1437 and len(test_labels) == 360
    assert rows.min() == 0 and rows.max() == 1


def test_options_come_from_the_command_line(example, monkeypatch) -> None:
    module = example("training")
    monkeypatch.setattr(sys, "argv", ["x.py", "there.png", "--epochs", "3", "--compile", "replay", "--models", "b"])
    options = module.read_options("here.png", 9, ("a", "b"))
    assert (str(options.path), options.epochs, options.compile, options.models) == ("there.png", 3, "replay", ("b",))
    monkeypatch.setattr(sys, "argv", ["x.py"])
    options = module.read_options("here.png", 9)
    assert (str(options.path), options.epochs, options.compile, options.models) == ("here.png", 9, "off", ())
