"""What hesse assumes of PyTorch's internals; where one of these fails after an upgrade, the code beside it has to change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd.graph import GradientEdge

from .programs import seeded

x = seeded(2, 3).requires_grad_()


def saved(node: Any) -> set[str]:
    return {name.removeprefix("_saved_") for name in dir(node) if name.startswith("_saved_")}


NODES: list[tuple[str, Tensor, set[str]]] = [
    ("AddmmBackward0", F.linear(x, seeded(4, 3).requires_grad_(), seeded(4)), {"mat1", "mat2", "alpha", "beta"}),
    ("MmBackward0", x @ seeded(3, 2).requires_grad_(), {"self", "mat2"}),
    (
        "ConvolutionBackward0",
        F.conv1d(x[None], seeded(4, 2, 2).requires_grad_()),
        {"input", "weight", "stride", "padding", "dilation", "groups", "transposed", "output_padding"},
    ),
    ("EmbeddingBackward0", F.embedding(torch.tensor([1]), x, padding_idx=0), {"indices", "padding_idx", "scale_grad_by_freq"}),
    (
        "NativeLayerNormBackward0",
        F.layer_norm(x, (3,), seeded(3).requires_grad_()),
        {"input", "normalized_shape", "result1", "result2"},
    ),
    (
        "NativeGroupNormBackward0",
        F.group_norm(seeded(2, 4, 3), 2, seeded(4).requires_grad_()),
        {"input", "group", "result1", "result2"},
    ),
    (
        "NativeBatchNormBackward0",
        F.batch_norm(x, torch.zeros(3).double(), torch.ones(3).double(), seeded(3).requires_grad_()),
        {"input", "running_mean", "running_var", "training", "eps"},
    ),
    ("MulBackward0", x * seeded(3).requires_grad_(), {"self", "other"}),
]


@pytest.mark.parametrize(("name", "value", "names"), NODES, ids=[n for n, _, _ in NODES])
def test_names_of_nodes_and_of_what_they_save(name: str, value: Tensor, names: set[str]) -> None:
    assert value.grad_fn is not None and value.grad_fn.name() == name
    assert names <= saved(value.grad_fn)


def test_input_metadata_describes_the_forward_outputs() -> None:
    values, where = (x * 2).max(1)
    node = values.grad_fn
    assert node is not None
    assert [(tuple(m.shape), m.dtype) for m in node._input_metadata] == [((2,), torch.float64)]
    assert where.grad_fn is None
    parts = x.unbind(1)
    node = parts[0].grad_fn
    assert node is not None and len(node._input_metadata) == 3
    assert [part.output_nr for part in parts] == [0, 1, 2]


def test_next_functions_lead_to_the_leaf_that_holds_its_variable() -> None:
    leaf = (x.sin()).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    assert leaf.name() == "torch::autograd::AccumulateGrad"
    assert leaf.variable is x


def test_nodes_keep_their_identity_while_they_are_held() -> None:
    y = x.sin().cos()
    first, second = y.grad_fn, y.grad_fn
    assert first is not None and first == second
    assert first.next_functions[0][0] is first.next_functions[0][0]


def test_gradient_edges_stand_for_tensors() -> None:
    y = x.sin()
    z = y.cos().sum()
    assert y.grad_fn is not None
    (g,) = torch.autograd.grad(z, [GradientEdge(y.grad_fn, 0)], retain_graph=True)
    torch.testing.assert_close(g, -y.sin())
    (h,) = torch.autograd.grad([GradientEdge(y.grad_fn, 0)], [x], [torch.ones_like(x)])
    torch.testing.assert_close(h, x.cos())


def test_a_detached_tensor_shares_its_version() -> None:
    own = seeded(3)
    alias = own.detach()
    before = alias._version
    own.mul_(2)
    assert alias._version == before + 1


def test_the_interpreter_stack_tells_the_transforms() -> None:
    seen: list[Any] = []

    def look(t: Tensor) -> Tensor:
        seen.append([interpreter.key() for interpreter in get_interpreter_stack() or []])
        with temporarily_clear_interpreter_stack():
            assert peek_interpreter_stack() is None
            assert torch.ones(2).requires_grad_().requires_grad
        assert peek_interpreter_stack() is not None
        return t.sum()

    assert peek_interpreter_stack() is None and not get_interpreter_stack()
    torch.func.vmap(torch.func.grad(look))(torch.ones(2, 2))
    assert seen == [[TransformType.Vmap, TransformType.Grad]]


def test_fused_attention_has_no_second_derivative() -> None:
    """If it ever gets one, `differentiable_attention` is no longer needed on CPU."""
    q = seeded(1, 2, 3, 4).requires_grad_()
    (g,) = torch.autograd.grad(F.scaled_dot_product_attention(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(g.sum(), q)


def test_forward_mode_of_a_padded_embedding_is_wrong() -> None:
    """If it ever gets right, the check of forward mode still serves other ops."""
    table = seeded(3, 2)
    tangent = torch.ones_like(table)
    pushed = torch.func.jvp(lambda w: F.embedding(torch.tensor([0, 1]), w, padding_idx=0), (table,), (tangent,))[1]
    assert float(pushed[0].abs().max()) == 1.0
