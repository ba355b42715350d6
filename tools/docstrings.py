"""A Griffe extension: what hesse's docstrings say in short is spelled out for the reference pages.

An entry ``rtol, atol: text`` becomes one entry for each name. The errors of a function may be written as running text,
``LeafError: an integer leaf. Others as `jacobian`.``; they become one entry for each class. What is returned is running text,
too, of the type that the signature says: a colon in its first line does not end a type.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

ENTRY = re.compile(r"^( *)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)$", re.MULTILINE)
RAISES = re.compile(r"^( *)Raises:\n((?:\1 +\S.*(?:\n|$))+)", re.MULTILINE)
RETURNS = re.compile(r"^( *Returns:\n +)(?=\S)", re.MULTILINE)
BEFORE_CODE = re.compile(r"::$", re.MULTILINE)
NAMES = r"(?:[A-Z]\w*Error, )*[A-Z]\w*Error: "
ERROR = re.compile(rf"({NAMES}|Others |As )(.*?)(?={NAMES}|Others |$)")


class ShortForms(griffe.Extension):
    """Spells out the short forms in every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = spell_out(obj.docstring.value)


def spell_out(text: str) -> str:
    """The text with one entry for each name and for each error; an empty type before what is returned."""
    text = BEFORE_CODE.sub(":", RETURNS.sub(r"\1: ", text))
    return ENTRY.sub(_entry_for_each_name, RAISES.sub(_entry_for_each_error, text))


def _entry_for_each_name(match: re.Match[str]) -> str:
    indent, names, meaning = match.groups()
    return "\n".join(f"{indent}{name}: {meaning}" for name in names.split(", "))


def _entry_for_each_error(match: re.Match[str]) -> str:
    indent, body = match.groups()
    entries = []
    for names, meaning in ERROR.findall(" ".join(textwrap.dedent(body).split())):
        is_other = not names.endswith(": ")
        entries.append(f"HesseError: {names.lower()}{meaning}" if is_other else names + meaning)
    return f"{indent}Raises:\n" + "".join(f"{indent}    {entry.strip()}\n" for entry in entries)
