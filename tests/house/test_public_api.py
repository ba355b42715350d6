"""The public contract: names and signatures, as they were agreed in public_api.txt."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import hesse

from .public import lines

SNAPSHOT = Path(__file__).with_name("public_api.txt")
UPDATE = "HESSE_UPDATE_API"


def test_public_names_and_signatures() -> None:
    """A change here is a change for users: write it in the changelog, then run with HESSE_UPDATE_API=1."""
    text = "\n".join(lines()) + "\n"
    if os.environ.get(UPDATE):
        SNAPSHOT.write_text(text, encoding="utf-8")
    agreed = SNAPSHOT.read_text(encoding="utf-8")
    diff = list(difflib.unified_diff(agreed.splitlines(), text.splitlines(), "agreed", "found", lineterm="", n=0))
    assert not diff, "\n".join([*diff, f"if this is meant: changelog, then {UPDATE}=1 pytest {__file__}"])


def test_every_public_name_exists_once_and_is_not_private() -> None:
    names = list(getattr(hesse, "__all__", ()))
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith("_") and name != "__version__"]
    assert not [name for name in names if not hasattr(hesse, name)]
