"""The Moore-Penrose inverse of a convolution, as an operator."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from hesse.convolutions.cached import Inverses
from hesse.convolutions.gradients import pseudo_inverse_product
from hesse.convolutions.inverse import Inverse
from hesse.convolutions.inverse_norm import condition_of
from hesse.convolutions.operator import Convolution
from hesse.core.errors import UnsupportedError
from hesse.core.memory import Budget
from hesse.operators.base import LinearOperator
from hesse.operators.storage import storable


@final
class ConvolutionPseudoInverse(LinearOperator):
    """``A⁺``, from output images of a convolution to input images; made by `hesse.pinv`.

    Blocks of images are solved together, and every solution is certified with the true operator. Differentiable by the images
    and by the weight of A, to any order and under the transforms of torch.func (see `pseudo_inverse_product`). If the values
    of the weight are changed in place, the next product finds a new inverse.

    Attributes:
        convolution: A.
    """

    def __init__(
        self,
        convolution: Convolution,
        *,
        rtol: float | None = None,
        memory: Budget | None = None,
        method: str = "auto",
    ) -> None:
        self.convolution = convolution
        self.in_space, self.out_space = convolution.out_space, convolution.in_space
        self.inverses = Inverses(convolution.geometry, rtol=rtol, memory=memory, method=method)
        if not is_functorch_wrapped_tensor(convolution.weight):
            self.inverses.of(convolution.weight)  # so that errors come early

    def mv(self, v: Tensor) -> Tensor:
        return self.mm(v[None])[0]

    def mm(self, V: Tensor) -> Tensor:
        weight = self.convolution.weight
        return pseudo_inverse_product(weight, V.to(weight.dtype), self.inverses)

    def transpose(self) -> LinearOperator:
        return TransposedConvolutionPseudoInverse(self)

    @property
    def inverse(self) -> Inverse:
        """What applies it, for the present values of the weight.

        Raises:
            UnsupportedError: within a transform of torch.func by the weight, which has no values there.
        """
        if is_functorch_wrapped_tensor(self.convolution.weight):
            raise UnsupportedError(
                "Rank, condition and method of a pseudo-inverse depend on the values of the weight.",
                "a transform of torch.func by the weight",
                "ask for them outside of vmap, grad and the like",
            )
        return self.inverses.of(self.convolution.weight)

    @property
    def method(self) -> str:
        """How it is applied: ``"dense"``, ``"circular"``, ``"patches"``, ``"krylov"``, ``"boundary"`` or the like."""
        return self.inverse.method

    @property
    def truncated(self) -> int:
        """Singular values that count as zero."""
        return self.inverse.truncated

    @property
    def rank(self) -> int | None:
        """Singular values that are kept; None where the method does not count them."""
        return None if self.method == "krylov" else min(self.shape) - self.truncated

    @property
    def gap(self) -> float:
        """The smallest singular value kept over the largest dropped; infinite if none was dropped."""
        return self.inverse.gap

    @property
    def largest(self) -> float:
        """The largest singular value of A."""
        return self.inverse.norm()

    @property
    def condition(self) -> float:
        """The largest singular value over the smallest kept, to about 1 %; found when first asked for (see `condition_of`)."""
        return condition_of(self.inverse)

    def __repr__(self) -> str:
        if is_functorch_wrapped_tensor(self.convolution.weight):
            return f"PseudoInverse({self.convolution.geometry})"
        dropped = f", rank {self.rank} of {min(self.shape)}" if self.truncated else ""
        return f"PseudoInverse({self.convolution.geometry}, method={self.method!r}{dropped})"


@final
class TransposedConvolutionPseudoInverse(LinearOperator):
    """The transpose of the pseudo-inverse of a convolution: the pseudo-inverse of the transposed convolution.

    Attributes:
        pseudo_inverse: the pseudo-inverse, which also tells method, rank, gap and condition.
    """

    def __init__(self, pseudo_inverse: ConvolutionPseudoInverse) -> None:
        self.pseudo_inverse = pseudo_inverse
        self.in_space, self.out_space = pseudo_inverse.out_space, pseudo_inverse.in_space

    def mv(self, v: Tensor) -> Tensor:
        return self.mm(v[None])[0]

    def mm(self, V: Tensor) -> Tensor:
        weight = self.pseudo_inverse.convolution.weight
        V = V.to(weight.dtype).conj()
        return pseudo_inverse_product(weight, V, self.pseudo_inverse.inverses, adjoint=True).conj()

    def transpose(self) -> LinearOperator:
        return self.pseudo_inverse

    @property
    def method(self) -> str:
        """How it is applied."""
        return self.pseudo_inverse.method

    @property
    def truncated(self) -> int:
        """Singular values that count as zero."""
        return self.pseudo_inverse.truncated

    @property
    def rank(self) -> int | None:
        """Singular values that are kept."""
        return self.pseudo_inverse.rank

    @property
    def gap(self) -> float:
        """The smallest singular value kept over the largest dropped; infinite if none was dropped."""
        return self.pseudo_inverse.gap

    @property
    def largest(self) -> float:
        """The largest singular value of A."""
        return self.pseudo_inverse.largest

    @property
    def condition(self) -> float:
        """The largest singular value over the smallest kept."""
        return self.pseudo_inverse.condition

    def __repr__(self) -> str:
        return f"{self.pseudo_inverse!r}.T"


@storable.register(ConvolutionPseudoInverse)
def _stored(A: ConvolutionPseudoInverse) -> dict[str, object]:
    """The operator and the options: what applies the inverse is made again where the file is loaded."""
    return {"convolution": A.convolution, "rtol": A.inverses.rtol, "method": A.inverses.method}


@storable.register(TransposedConvolutionPseudoInverse)
def _stored_transposed(A: TransposedConvolutionPseudoInverse) -> dict[str, object]:
    return {"pseudo_inverse": A.pseudo_inverse}
