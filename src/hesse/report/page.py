"""What all pages share: one file that needs nothing beside itself, the same facts as JSON, and what they were made with."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from hesse.report import writing


def made_with() -> dict[str, Any]:
    """When and with which versions a page was made."""
    return {
        "threads": torch.get_num_threads(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"hesse": _version("hesse"), "torch": torch.__version__, "python": platform.python_version()},
    }


def render(template: str, **values: Any) -> str:
    """A page from a template: inline style, inline drawings, no network.

    Args:
        template: the file's name; it extends ``base.html``.
        values: what the template names; `about`, `kind` and `command` for the base.
    """
    environment = Environment(
        loader=PackageLoader("hesse.report"), autoescape=select_autoescape(default=True), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters.update(breakable=writing.breakable, from_here=writing.from_here)
    environment.globals.update(
        write=writing.write, write_seconds=writing.write_seconds, write_gradients=writing.write_gradients, enumerate=enumerate
    )
    return environment.get_template(template).render(**values)


def write_page(folder: str | Path, command: str, page: str, facts: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write ``COMMAND.html`` and ``COMMAND.json`` into a folder, which is made if need be.

    Returns:
        both paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    html, numbers = folder / f"{command}.html", folder / f"{command}.json"
    html.write_text(page, encoding="utf-8")
    numbers.write_text(json.dumps(plain(facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return html, numbers


def plain(value: Any) -> Any:
    """Dicts, lists, numbers and texts as JSON has them; numbers that are not finite become None, complex ones a pair."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, complex):
        return [plain(value.real), plain(value.imag)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
