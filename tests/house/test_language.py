"""One spelling in the source, no em dashes, nothing left to do."""

from __future__ import annotations

import re

import pytest

from .source import sources

STEMS = (
    "normalis optimis initialis regularis generalis vectoris summaris materialis parametris linearis "
    "factoris diagonalis symmetris serialis visualis recognis organis specialis minimis maximis realis randomis "
    "penalis"
)
BRITISH = (
    rf"\w*(?:{'|'.join(STEMS.split())})(?:e|ed|es|er|ers|ing|able|ations?)",
    r"\w*colour\w*", r"behaviours?", r"neighbours?\w*", r"favour\w*", r"honour\w*",
    r"labell(?:ed|ing)",
    r"modell(?:ed|ing)", r"cancell(?:ed|ing)", r"travell\w+", r"centred?", r"metres?", r"artefacts?",
    r"analys(?:e|ed|ing)", r"grey\w*", r"whilst", r"licence",
)  # fmt: skip
FORBIDDEN = {
    "British spelling": re.compile(rf"\b(?:{'|'.join(BRITISH)})\b", re.IGNORECASE),
    "em dash": re.compile("\N{EM DASH}"),
    "left to do": re.compile(r"\b(?:TODO|FIXME|XXX)\b"),
}


def found(kind: str, text: str) -> list[tuple[int, str]]:
    pattern = FORBIDDEN[kind]
    return [(n, match.group()) for n, line in enumerate(text.splitlines(), 1) for match in pattern.finditer(line)]


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_source(kind: str) -> None:
    wrong = [f"{source.path}:{line}: {word}" for source in sources() for line, word in found(kind, source.text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("British spelling", "the Normalised colours"),
        ("em dash", "this \N{EM DASH} that"),
        ("left to do", "# TODO: x"),
    ],
)
def test_the_test_can_fail(kind: str, text: str) -> None:
    assert found(kind, text)


def test_american_words_pass() -> None:
    text = "normalized color, initial, realistic, minimal, maximum, organism, labeled, analysis, summary, center"
    assert not found("British spelling", text)
