"""The bound of the error that a solution carries, beside its true error."""

from __future__ import annotations

from dataclasses import dataclass

from hesse.convolutions.questions.solutions import answer
from hesse.core.errors import HesseError
from tests.convolutions.configurations import Configuration
from tests.convolutions.exact import pseudo_solution, spectrum
from tests.convolutions.scores import made_by, relative

EVERY = {"auto": 1, "boundary": 5}  # which numbers; the boundary method is slow on images as small as these
HIGHEST = 1e9  # condition up to which the true error can be told


@dataclass(frozen=True)
class Bound:
    """Of one solution.

    Attributes:
        kind: ``"judged"``, ``"refused"`` (an error, or trouble that it tells), ``"crashed"``, or ``"unclear"``: a cut-off
            without a gap, or a condition beyond what the reference bears.
        error: true, relative.
        bound: what the solution says.
        text: the configuration.
    """

    kind: str
    error: float = 0.0
    bound: float = 0.0
    text: str = ""

    @property
    def holds(self) -> bool:
        return self.error <= self.bound


def bounded(c: Configuration, method: str) -> Bound:
    """Solve for a random right-hand side, by one way of the ladder, and ask for the bound."""
    M = c.matrix()
    known = spectrum(M, None)
    text = f"{c}; condition {known.condition:.1e}"
    if not known.clear or known.condition > HIGHEST:
        return Bound("unclear", text=text)
    A, y = c.operator(), c.random(M.shape[0])
    try:
        inverse = made_by(method)(A, None)
        assert inverse is not None
        found = answer(inverse, y[None])
        if found.trouble:
            return Bound("refused", text=f"{text}: {found.trouble}")
        bound = found.forward_error() if callable(found.forward_error) else found.forward_error
    except HesseError as error:
        return Bound("refused", text=f"{text}: {error}")
    except Exception as error:
        return Bound("crashed", text=f"{text}: {type(error).__name__}: {error}")
    assert bound is not None
    error = relative(found.value[0], pseudo_solution(M, y, known.rank))
    return Bound("judged", error, bound, f"{text}: error {error:.1e}, bound {bound:.1e}")
