"""`SoftAttention`: the expectation of a choice among vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.nn.models.initialization import Initializer


def SoftAttention(
    hidden_features: int = 10,
    subject_features: int = 15,
    subject_choices: int = 20,
    *,
    layer_normalization: bool = False,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[SoftAttentionFunction, Tree]:
    """Deterministic soft attention of Xu et al., "Show, attend and tell" (ICML 2015), in its linear form.

    focus = softmax(w · subject + W h + b); attention = sum over the choices of focus * subject.

    Args:
        hidden_features: elements of the state h that steers.
        subject_features: elements of each choice.
        subject_choices: choices.
        layer_normalization: normalize the logits over the choices; its bias then stands for b.
        generator: source of the initial values; None takes torch's global one.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        ``(f, params)``. ``f(params, subject, h)`` returns ``(attention, focus)``. ``params``: ``weight_subject``
        ``[subject_features]``, ``weight_hidden`` ``[subject_choices, hidden_features]``, each uniform within 1 / sqrt(its last
        size), and ``bias`` (0) ``[subject_choices]`` or "normalization" with ``weight`` (1) and ``bias`` (0).
    """
    draw = Initializer(generator, dtype, device)
    params: dict[str, Any] = {
        "weight_subject": draw.uniform(subject_features**-0.5, subject_features),
        "weight_hidden": draw.uniform(hidden_features**-0.5, subject_choices, hidden_features),
    }
    if layer_normalization:
        params["normalization"] = draw.normalization(subject_choices)
    else:
        params["bias"] = draw.constant(0.0, subject_choices)
    return SoftAttentionFunction(hidden_features, subject_features, subject_choices, layer_normalization), params


@dataclass(frozen=True)
class SoftAttentionFunction:
    """The pure function that `SoftAttention` returns."""

    hidden_features: int
    subject_features: int
    subject_choices: int
    layer_normalization: bool
    eps: float = 1e-5

    def __call__(self, params: Tree, subject: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The attended vector and the probabilities of the choices.

        Args:
            params: the tree that the constructor returned, or one of the same structure.
            subject: ``[batch, subject_features, subject_choices]``, or without the batch axis.
            h: ``[batch, hidden_features]``, or without the batch axis.

        Returns:
            attention ``[batch, subject_features]`` and focus ``[batch, subject_choices]``, without the batch axis if both
            inputs are.

        Raises:
            StructureError: other shapes.
        """
        wanted = (self.subject_features, self.subject_choices)
        fits = subject.ndim in (2, 3) and tuple(subject.shape[-2:]) == wanted and h.shape[-1:] == (self.hidden_features,)
        if not fits or h.ndim > 2 or (subject.ndim == 3 and h.ndim == 2 and len(subject) != len(h)):
            asked = (
                f"This attention takes [batch, {wanted[0]}, {wanted[1]}] and [batch, {self.hidden_features}], or one of each."
            )
            raise StructureError(asked, f"{tuple(subject.shape)} and {tuple(h.shape)}", "features come before choices")
        logits = params["weight_subject"] @ subject + torch.nn.functional.linear(h, params["weight_hidden"], params.get("bias"))
        if self.layer_normalization:
            scale = params["normalization"]
            shape = (self.subject_choices,)
            logits = torch.nn.functional.layer_norm(logits, shape, scale["weight"], scale["bias"], self.eps)
        focus = logits.softmax(-1)
        return (subject @ focus.unsqueeze(-1)).squeeze(-1), focus
