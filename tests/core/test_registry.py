"""Registries: the decorator, replacement, the error that names key and remedy."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import NoRuleError
from hesse.core.registry import Registry


def make() -> Registry[object]:
    return Registry("layer rule", "register one with @layer_rules.register(key)")


def test_register_for_several_keys_and_look_up() -> None:
    registry = make()

    @registry.register("AddmmBackward0", torch.nn.Linear)
    def rule() -> int:
        return 3

    assert rule() == 3  # the decorator hands the rule back
    assert registry.lookup("AddmmBackward0") is rule
    assert registry.lookup(torch.nn.Linear) is rule
    assert registry.get("AddmmBackward0") is rule
    assert "AddmmBackward0" in registry
    assert list(registry) == ["AddmmBackward0", torch.nn.Linear]


def test_a_later_registration_replaces() -> None:
    registry = make()
    registry.register("key")("first")
    registry.register("key")("second")
    assert registry.lookup("key") == "second"
    assert list(registry) == ["key"]


def test_an_unknown_key_names_key_and_remedy() -> None:
    registry = make()
    assert registry.get("unknown") is None
    assert "unknown" not in registry
    with pytest.raises(NoRuleError, match=r"no layer rule for unknown\.\n  remedy: register one") as caught:
        registry.lookup("unknown")
    assert isinstance(caught.value, LookupError)
    with pytest.raises(NoRuleError, match="for Linear"):
        registry.lookup(torch.nn.Linear)


def test_printed_form() -> None:
    registry = make()
    registry.register("b", torch.nn.Linear, "a")("rule")
    assert repr(registry) == "Registry(layer rule: Linear, a, b)"
