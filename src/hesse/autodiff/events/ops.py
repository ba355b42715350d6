"""What is known of single ops where NaN and infinity are hunted: what they write, what they fill on purpose, where they have
poles, and which cannot make anything non-finite out of finite inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_UNFILLED = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_"}
_OVERWRITES = {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "exponential_", "random_", "set_"}
_OVERWRITES |= {"log_normal_", "cauchy_", "geometric_", "_foreach_copy_", "_foreach_zero_"}
_MEANT = {"full", "full_like", "new_full", "fill", "fill_", "scalar_tensor", "masked_fill", "masked_fill_", "where"}
_MEANT |= {"index_put", "index_put_", "index_fill", "index_fill_", "constant_pad_nd", "_index_put_impl_"}
_SAFE = {"relu", "relu_", "threshold_backward", "tanh", "tanh_", "sigmoid", "sigmoid_", "sigmoid_backward", "tanh_backward"}
_SAFE |= {
    "_softmax",
    "clone",
    "zeros_like",
    "zeros",
    "new_zeros",
    "ones",
    "ones_like",
    "cat",
    "stack",
    "index_select",
    "gather",
}
_SAFE |= {"embedding", "neg", "neg_", "abs", "sign", "sin", "cos", "erf", "max_pool2d_with_indices", "arange", "flip"}
_SAFE |= {"roll", "hardtanh", "hardsigmoid", "hardtanh_backward", "select_backward", "slice_backward", "repeat", "bernoulli_"}
_SAFE |= {
    "zero_",
    "maximum",
    "minimum",
    "amax",
    "amin",
    "sort",
    "topk",
    "tril",
    "triu",
    "_reshape_copy",
    "masked_select",
    "take",
}
_DIVISIONS = {"div", "div_", "reciprocal", "reciprocal_", "addcdiv", "addcdiv_", "_foreach_div", "_foreach_div_"}
_DIVISIONS |= {"_foreach_addcdiv_", "_foreach_addcdiv", "remainder", "fmod", "rsqrt", "rsqrt_"}
_POLES = {"log", "log_", "log2", "log2_", "log10", "log10_", "log1p", "log1p_", "logit", "logit_", "atanh", "erfinv", "lgamma"}
_POLES |= {"digamma", "polygamma", "special_ndtri", "special_zeta", "xlogy", "special_xlog1py", "special_log_ndtr"}
_POLES |= {"_ctc_loss", "_foreach_log", "linalg_inv_ex", "_linalg_solve_ex", "binary_cross_entropy", "_foreach_reciprocal"}
_PLAIN_VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "squeeze", "unsqueeze", "detach", "alias"}
_NOTED = {"ones_like", "_local_scalar_dense", "_amp_foreach_non_finite_check_and_unscale_"}  # told apart by who watches
_SPARE = ("_ctc_loss", "_cudnn_ctc_loss", "_scaled_dot_product", "_flash_attention", "_efficient_attention")
_UNSAID = {
    "native_batch_norm": (3, 4),
    "cudnn_batch_norm": (3, 4),
    "miopen_batch_norm": (3, 4),
    "batch_norm_update_stats": (1, 2),
}
_IF_TRAINING = {"native_batch_norm": 5, "cudnn_batch_norm": 5, "miopen_batch_norm": 5}
_POWERS = {"pow", "pow_", "_foreach_pow", "float_power"}
_DIVISOR = {"reciprocal": 0, "reciprocal_": 0, "rsqrt": 0, "rsqrt_": 0, "addcdiv": 2, "addcdiv_": 2}
_DIVISOR |= {"_foreach_addcdiv": 2, "_foreach_addcdiv_": 2}


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known of one op.

    Attributes:
        name: its name without namespace and overload.
        view: it only looks at the memory that it is given.
        plain_view: its derivative is a view too, so that nobody will ask for the line of its autograd node.
        writes: the arguments that it writes into, by position and name; those too of which its schema says nothing.
        overwrites: what those held before does not matter.
        unfilled: it returns memory that nobody has filled.
        meant: an explicit constant may be infinite.
        safe: finite inputs give finite outputs, whatever their size.
        keeps_logarithms: its further outputs are logarithms that it keeps for its backward pass; -inf among them is meant.
        simple: all that it does to its arguments is to read them, or to change the first one in place.
    """

    name: str
    view: bool
    plain_view: bool
    writes: tuple[tuple[int, str], ...]
    overwrites: bool
    unfilled: bool
    meant: bool
    safe: bool
    keeps_logarithms: bool
    simple: bool

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors among the arguments that it writes into."""
        found: list[Tensor] = []
        training = _IF_TRAINING.get(self.name, 0)
        if training and len(args) > training and args[training] is False:
            return found
        for number, name in self.writes:
            found += tensors(args[number] if number < len(args) else kwargs.get(name))
        return found

    def has_pole(self, args: tuple[Any, ...]) -> bool:
        """Whether an infinity that it made of these finite arguments is a pole (1 / 0, log 0), not an overflow.

        Cost: one reduction for divisions and powers.
        """
        if self.name in _DIVISIONS:
            return _holds_zero(args[min(_DIVISOR.get(self.name, 1), len(args) - 1)])
        if self.name in _POWERS:
            return _holds_zero(args[0])
        return self.name in _POLES or self.name.startswith(("special_", "linalg_"))


_known: dict[int, tuple[Any, Knowledge]] = {}


def knowledge(func: Any) -> Knowledge:
    """What is known of an op.

    Args:
        func: the op as a dispatch mode sees it.

    Returns:
        Its `Knowledge`, made once.
    """
    found = _known.get(id(func))
    if found is None:
        found = _known[id(func)] = func, _learned(func)
    return found[1]


def _learned(func: Any) -> Knowledge:
    name, schema = func.overloadpacket.__name__, func._schema
    writes = tuple(
        (number, argument.name)
        for number, argument in enumerate(schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write) or number in _UNSAID.get(name, ())
    )
    overwrites = name in _OVERWRITES or func._overloadname.endswith("out")
    own = func.namespace in ("aten", "prims")
    view = own and not writes and (func.is_view or name in ("lift_fresh", "_unsafe_view"))
    unfilled, keeps = name in _UNFILLED, name.startswith(_SPARE)
    in_place = len(writes) == 1 and writes[0][0] == 0 and name.endswith("_")
    simple = own and not (view or unfilled or overwrites or name in _NOTED) and (in_place or not writes)
    plain = view and name in _PLAIN_VIEWS
    return Knowledge(name, view, plain, writes, overwrites, unfilled, name in _MEANT, own and name in _SAFE, keeps, simple)


def _holds_zero(divisor: Any) -> bool:
    return any(bool((value == 0).any()) for value in tensors(divisor)) or (not isinstance(divisor, Tensor) and divisor == 0)


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among an op's arguments or outputs, in lists of them too."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors(value)


_PLAIN = torch._C._disabled_torch_dispatch_impl
_ODD = ("float4", "float8_e8m0")
NUMBERS = {
    kind
    for kind in vars(torch).values()
    if isinstance(kind, torch.dtype) and (kind.is_floating_point or kind.is_complex) and not str(kind)[6:].startswith(_ODD)
}
_LAYOUTS = (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def has_own_dispatch(kind: Any) -> bool:
    """Whether tensors of a class handle ops themselves (most wrap other tensors)."""
    return kind.__torch_dispatch__ is not _PLAIN


def checkable(value: Any) -> bool:
    """Whether a value is a tensor that holds floating-point entries: no empty, nested or meta tensor, no subclass that wraps
    others (those have a dispatch of their own)."""
    if not isinstance(value, Tensor) or value.dtype not in NUMBERS:
        return False
    kind = type(value)
    if kind is not Tensor and has_own_dispatch(kind):
        return False
    if value.layout not in _LAYOUTS or value.is_meta or value.is_nested or value._is_zerotensor():
        return False
    return value.numel() > 0
