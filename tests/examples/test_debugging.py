"""The planted bugs of the example are found, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from hesse.report import check_target


def test_the_wrong_factor_and_the_line_of_the_nan(example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    debugging = example("debugging")
    wrong, mended, report = debugging.main(tmp_path / "debugging.png")
    assert not wrong.ok
    assert {finding.leaf.rpartition(".")[2] for finding in wrong.findings if finding.check == "reverse mode"} == {"beta"}
    assert mended.ok
    assert (report.kind, report.phase) == ("inf", "forward")
    source = Path(debugging.__file__).read_text().splitlines()
    assert "torch.log(probabilities)" in source[report.line - 1]
    assert (tmp_path / "debugging.png").stat().st_size > 10_000


def test_differences_agree_with_the_mended_layer(example: Callable[[str], ModuleType]) -> None:
    debugging = example("debugging")
    gradient, differences = debugging.slopes(*debugging.mended_layer())
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-8)
    gradient, differences = debugging.slopes(*debugging.wrong_layer())
    assert not torch.allclose(gradient, differences, rtol=1e-2)


def test_the_wrong_layer_is_found_in_the_network(example: Callable[[str], ModuleType]) -> None:
    model, loss = check_target("debugging.py:wrong_model", example("debugging").wrong_model()).parts
    assert model.report is not None
    assert {finding.leaf for finding in model.report.findings} == {"1.beta"}
    assert loss.verdict == "ok"
