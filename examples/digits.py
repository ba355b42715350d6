"""A LeNet trained on scikit-learn's handwritten digits, handed to `hesse report`.

Run it with::

    hesse report examples/digits.py:lenet

The images are real (8 x 8 pixels, 1797 of them) and come inside the scikit-learn wheel: nothing is downloaded.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

TEST_IMAGES = 360
EPOCHS = 20
BATCH = 64


class LeNet(nn.Module):
    """conv - pool - conv - pool - three fully connected layers, for images of 8 x 8 pixels (LeCun et al. 1998)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 16, 3, padding=1)
        self.fc1 = nn.Linear(64, 60)
        self.fc2 = nn.Linear(60, 42)
        self.fc3 = nn.Linear(42, 10)

    def forward(self, images: Tensor) -> Tensor:
        """``[N, 1, 8, 8]`` to class scores ``[N, 10]``."""
        hidden = nn.functional.max_pool2d(torch.relu(self.conv1(images)), 2)
        hidden = nn.functional.max_pool2d(torch.relu(self.conv2(hidden)), 2)
        hidden = torch.relu(self.fc1(hidden.flatten(1)))
        return self.fc3(torch.relu(self.fc2(hidden)))


def load_images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((training images, labels), (test images, labels)): float32 ``[N, 1, 8, 8]`` in [0, 1], split at random."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    return (images[train], labels[train]), (images[test], labels[test])


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Minimize the cross-entropy with Adam and print how it goes."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    loss_function = nn.CrossEntropyLoss()
    model.train()
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for chosen in torch.randperm(len(labels), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = loss_function(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
        if epoch % 5 == 0:
            print(f"epoch {epoch:2d} of {EPOCHS}: training loss {total / len(labels):.4f}")


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of images classified right."""
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def lenet() -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """Train, and return (model, loss, data) with the test images as data."""
    training, test = load_images()
    torch.manual_seed(0)
    model = LeNet()
    train(model, *training)
    model.eval()
    print(f"test accuracy {accuracy(model, *test):.1%} on {len(test[1])} images")
    return model, nn.CrossEntropyLoss(), test


if __name__ == "__main__":
    lenet()
