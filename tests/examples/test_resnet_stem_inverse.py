"""The picture comes back from its features: exactly where there are enough of them, else the shortest one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F


@torch.no_grad()
@pytest.mark.parametrize("kept", [20, 8])
def test_it_is_the_pseudo_inverse_of_the_layer(example, kept) -> None:
    module = example("resnet_stem_inverse")
    layer, picture = module.stem(), torch.rand(3, 10, 12, dtype=torch.float64)
    units = torch.eye(360, dtype=torch.float64).reshape(360, 3, 10, 12)
    M = F.conv2d(units, layer.weight[:kept], stride=2, padding=3).reshape(360, -1).T
    found = module.invert(layer, picture, kept)
    y = layer(picture[None])[0, :kept]
    inverse = torch.linalg.pinv(M)
    torch.testing.assert_close(found.picture.reshape(-1), inverse @ y.reshape(-1), rtol=1e-8, atol=1e-8)
    coarse = inverse @ module.rounded(y).reshape(-1)
    torch.testing.assert_close(found.from_rounded.reshape(-1), coarse, rtol=1e-8, atol=1e-8)
    assert found.shape == M.shape and found.residual < 1e-8
    transposed = F.conv_transpose2d(y[None], layer.weight[:kept], stride=2, padding=3, output_padding=1)[0]
    away = found.transposed / transposed
    assert away.std() < 1e-10 * away.mean().abs()


def test_features_are_rounded_to_levels(example) -> None:
    module = example("resnet_stem_inverse")
    y = torch.randn(2, 9, 7, dtype=torch.float64)
    coarse = module.rounded(y, 3)
    assert all(len(channel.unique()) <= 8 for channel in coarse)
    step = (y.amax((1, 2)) - y.amin((1, 2))) / 7
    assert ((coarse - y).abs().amax((1, 2)) <= step / 2 + 1e-12).all()


def test_the_figure_is_drawn(example, tmp_path) -> None:
    module = example("resnet_stem_inverse")
    result = module.main(tmp_path / "figure.png", 12, (32, 8, 4))
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    errors = {kept: module.error(found.picture, result.picture) for kept, found in result.by_kept.items()}
    assert errors[32] < 1e-9 < 0.05 < errors[8] < errors[4]
    assert module.error(result.by_kept[32].transposed, result.picture) > 0.2
