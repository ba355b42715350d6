"""What a run of a module writes to, besides computing."""

from __future__ import annotations

from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Named, Specimen

_FORWARD, _BACKWARD = "unchanged by the forward pass", "unchanged by the backward pass"
_BEHIND = "changed in place behind autograd's back (through .data, or memory shared with another library)"


class Watch:
    """Parameters and inputs before a run, to be compared with what they are after it.

    Args:
        specimen: the module; what this keeps is of its parameters as they stand now.

    Attributes:
        inputs: for the run.
    """

    def __init__(self, specimen: Specimen) -> None:
        self._s = specimen
        self.inputs: Named = specimen.call.moving
        constants = dict(specimen.call.constants())
        self._now: Named = {**specimen.parameters(), **self.inputs, **constants}
        self._before = {name: t if name in constants else t.detach().clone() for name, t in self._now.items()}
        self._before |= {name: specimen.call.given[name] for name in constants}

    def forward(self, ledger: Ledger, when: str = "") -> bool:
        """Judge what the forward pass did.

        Args:
            ledger: where to report.
            when: in what circumstances, added to the name of the check.

        Returns:
            Whether it wrote to nothing.
        """
        good = ledger.equal(_FORWARD + when, self._now, self._before, "changed in place by the forward pass")
        if self._s.in_place:  # such a module gets copies of its inputs, and may write to them where autograd sees it
            silent = {name: t.detach() for name, t in self._s.passed.items() if t._version == 0}
            before = {name: self._before[name] for name in silent}
            good &= ledger.equal(f"inputs of a module in place{when}", silent, before, _BEHIND)
        return good

    def backward(self, ledger: Ledger) -> None:
        """Judge what the backward pass did, where the forward pass wrote to nothing."""
        ledger.equal(_BACKWARD, self._now, self._before, "changed in place by the backward pass")
