"""The text is what its README says, and codes go back to it."""

from __future__ import annotations

import torch


def test_the_text_is_what_its_readme_says(example) -> None:
    module = example("text")
    readme = (module.TEXT.parent / "README.md").read_text()
    assert f"{len(module.text()):,} characters" in readme and f"{len(module.characters())} different" in readme
    assert module.TEXT.name in readme and module.text().isascii()
    assert module.text().startswith("Chapter 1\n\nIt is a truth universally acknowledged")


def test_codes_go_back_to_the_text(example) -> None:
    module = example("text")
    codes = module.encoded_text()
    assert module.decode(codes) == module.text()
    assert codes.min() == 0 and codes.max() == len(module.characters()) - 1


def test_the_parts_are_consecutive(example) -> None:
    module = example("text")
    parts = module.split((0.5, 0.2, 0.3))
    assert torch.equal(torch.cat(parts), module.encoded_text())
    assert [round(len(part) / len(module.text()), 4) for part in parts] == [0.5, 0.2, 0.3]
