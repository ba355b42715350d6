"""A hook of the site's build: what must not drift from the code is filled in from it.

`<!-- loss rules -->` becomes a table made from the registry, `<!-- help COMMAND -->` the help text of a command.
`::: hesse.name` of a public name is pointed to where the object is defined, since a function may share its name with the
module that it is in.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Hashable
from typing import Any

MARKER = re.compile(r"<!-- (loss rules|help(?: \w+)*) -->")
PUBLIC = re.compile(r"^::: hesse\.(\w+)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    markdown = PUBLIC.sub(lambda match: reference_to(match[1]), markdown)
    return MARKER.sub(lambda match: fill(match[1]), markdown)


def reference_to(name: str) -> str:
    """The directive that documents a public name of hesse under that name."""
    import hesse

    item = getattr(hesse, name)
    item = item if hasattr(item, "__qualname__") else type(item)  # a callable object is documented by its class
    options = f"options: {{ heading: hesse.{name}, toc_label: {name} }}"
    return f"::: {item.__module__}.{item.__qualname__}\n    {options}"


def fill(marker: str) -> str:
    """The text that stands for a marker."""
    if marker == "loss rules":
        from hesse.rules.losses import loss_rules

        return table("loss", loss_rules)
    return help_text(marker.split()[1:])


def table(kind: str, registry: Any) -> str:
    """A Markdown table of a registry: the keys of each rule, the first line that documents it, its file."""
    keys_of: dict[tuple[str, str], list[str]] = {}
    for key in registry:
        rule = registry.get(key)
        documented = inspect.getdoc(rule) or inspect.getdoc(sys.modules[rule.__module__]) or ""
        file = rule.__module__.removeprefix("hesse.rules.").replace(".", "/") + ".py"
        keys_of.setdefault((file, documented.split("\n")[0].replace("|", "\\|")), []).append(key_name(key))
    rows = [f"| {kind} | what is covered | file |", "|---|---|---|"]
    for (file, summary), keys in sorted(keys_of.items()):
        rows.append(f"| {', '.join(f'`{key}`' for key in keys)} | {summary} | `{file}` |")
    return "\n".join(rows)


def key_name(key: Hashable) -> str:
    """How a table calls a key: a class or function by its name, anything else as it is."""
    return getattr(key, "__qualname__", None) or str(key)


def help_text(path: list[str]) -> str:
    """What ``hesse PATH --help`` prints, as a code block."""
    import click

    from hesse.cli import main

    command: click.Command = main
    context = click.Context(command, info_name="hesse", terminal_width=80, **command.context_settings)
    for name in path:
        command = command.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
        context = click.Context(command, info_name=name, parent=context, terminal_width=80, **command.context_settings)
    return f"```text\n{command.get_help(context)}\n```"
