"""Registries: which rule serves which key. Outside packages use the same decorator as the built-in rules."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from hesse.core.errors import NoRuleError

Rule = TypeVar("Rule")


class Registry(Generic[Rule]):
    """A table of rules.

    Args:
        kind: what the rules are for, as errors name it.
        remedy: what to do when a key has no rule.
    """

    def __init__(self, kind: str, remedy: str) -> None:
        self.kind, self.remedy = kind, remedy
        self._rules: dict[Hashable, Rule] = {}

    def register(self, *keys: Hashable) -> Callable[[Rule], Rule]:
        """Decorator: the decorated rule serves these keys (a later registration replaces an earlier one)."""

        def decorate(rule: Rule) -> Rule:
            for key in keys:
                self._rules[key] = rule
            return rule

        return decorate

    def get(self, key: Hashable) -> Rule | None:
        """The rule for a key, or None."""
        return self._rules.get(key)

    def lookup(self, key: Hashable) -> Rule:
        """The rule for a key.

        Raises:
            NoRuleError: there is none; names the key and the remedy.
        """
        rule = self._rules.get(key)
        if rule is None:
            raise NoRuleError(f"hesse has no {self.kind} for {_name(key)}.", "", self.remedy)
        return rule

    def __contains__(self, key: Hashable) -> bool:
        return key in self._rules

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._rules)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(sorted(_name(key) for key in self._rules))})"


def _name(key: Hashable) -> str:
    return getattr(key, "__qualname__", None) or str(key)
