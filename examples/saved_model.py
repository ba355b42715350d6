"""A report on a model saved in a file.

Run it with::

    hesse report examples/saved_model.py:load

It loads ``lenet.pt`` beside this file, a `state_dict` as `torch.save` writes it; where there is none yet, a LeNet is trained
and saved first. For another file, name it in the environment::

    MODEL=runs/42/lenet.pt hesse report examples/saved_model.py:load

For a model of your own, copy this file and change what `load` builds: the architecture, the loss and the data are code, the
file holds the numbers only.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from digits import LeNet, load_images, train  # digits.py stands beside this file

DEFAULT = Path(__file__).parent / "lenet.pt"


def save(path: Path) -> None:
    """Train a LeNet on the training digits and save its parameters."""
    training, _ = load_images()
    torch.manual_seed(0)
    model = LeNet()
    train(model, *training)
    torch.save(model.state_dict(), path)
    print(f"saved {path}")


def load() -> tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return (model, loss, data) with the parameters of the file and the test images, in batches of 120."""
    path = Path(os.environ.get("MODEL", DEFAULT))
    if path == DEFAULT and not path.exists():
        save(path)
    model = LeNet()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model.eval()
    _, (images, labels) = load_images()
    return model, nn.CrossEntropyLoss(), list(zip(images.split(120), labels.split(120), strict=True))


if __name__ == "__main__":
    save(DEFAULT)
