"""What stored rows depend on: the model, the loss, the data, the settings, and what else decides the last bit of a number.

Fingerprints name what changed; they cannot see everything (a function may read a global variable). So a resumed run also
computes some of the stored numbers again and compares them bit for bit, see `probe`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import platform
import types
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from hesse.core import tree
from hesse.core.errors import UnsupportedError
from hesse.operators.base import LinearOperator
from hesse.operators.encoding import Encoder
from hesse.operators.storage import storable
from hesse.parameters.base import JacobianBySample

Json = Any
_PIECE = 2**26


def identity_of(J: JacobianBySample, settings: Mapping[str, Json]) -> dict[str, Json]:
    """What has to be the same in a resumed run, as JSON: name -> fingerprint or setting.

    Args:
        J: the Jacobian.
        settings: what is asked of it.

    Raises:
        UnsupportedError: a Jacobian that was not made from a model and data, or one whose results have a graph.

    Cost: one pass over the bytes of the parameters.
    """
    recipe, hashes = J.recipe, J.hashes
    if recipe is None or hashes is None or recipe.asked.attached:
        found = "one with create_graph=True" if recipe is not None else "one that was made inside of another quantity"
        remedy = "store hesse.parameter_jacobian(model, loss, data)"
        raise UnsupportedError("Rows are stored of Jacobians that can be computed again.", found, remedy)
    named = {name: leaf for name, leaf in tree.named_leaves(J.params) if isinstance(leaf, Tensor)}
    module = recipe.model.module
    buffers = {} if module is None else dict(module.named_buffers())
    content = [str(size) for size in J.sizes] + [hash_of_tensor(hashes)]
    return {
        "parameters": {name: f"{_kind(leaf)} {hash_of_tensor(leaf)}" for name, leaf in {**recipe.model.own, **named}.items()},
        "columns": {name: _kind(leaf) for name, leaf in named.items()},
        "buffers": {name: f"{_kind(leaf)} {hash_of_tensor(leaf)}" for name, leaf in buffers.items()},
        "model": describe_value(recipe.model.key) if module is None else f"{_name(type(module))} {_hash(_module_text(module))}",
        "loss": describe_value(recipe.loss),
        "data": {"samples": J.count, "batches": len(J.sizes), "content in order": _hash("\n".join(content))},
        "settings": {"rows": list(J.out_space.shapes[0]), "outputs": describe_value(recipe.asked.outputs), **settings},
        "environment": environment(J.in_space.device),
    }


def environment(device: torch.device) -> dict[str, Json]:
    """Versions, threads and switches that decide the last bit of a number."""
    matmul = {"cpu": torch.get_float32_matmul_precision(), "cuda": str(torch.backends.cuda.matmul.allow_tf32)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    lowered = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    libraries = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cudnn}.get(device.type)
    return {
        "hesse": version("hesse"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": f"{device.type} {name}",
        "machine": platform.machine(),
        "default dtype": str(torch.get_default_dtype()),
        "autocast": str(lowered),
        "float32 products": matmul.get(device.type, ""),
        "library kernels": _switches(libraries),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _switches(library: Any) -> dict[str, Json]:
    """The switches of oneDNN or cuDNN that choose kernels."""
    names = ("enabled", "deterministic", "benchmark", "allow_tf32")
    return {name: found for name in names if isinstance(found := getattr(library, name, None), bool)}


def describe_operator(A: LinearOperator) -> Json:
    """A fingerprint of an operator that can be stored: its type, and the hash of what it is made from.

    Raises:
        NoRuleError: one that cannot.
    """
    encoder = Encoder(lambda part: (type(part).__qualname__, storable.lookup(type(part))(part)))
    body = json.dumps([encoder.encode(A, "operator"), encoder.spaces])
    tensors = [f"{name} {_kind(leaf)} {hash_of_tensor(leaf)}" for name, leaf in encoder.tensors.items()]
    return f"{type(A).__name__} {_hash(chr(10).join([body, *tensors]))}"


def describe_value(value: Any) -> Json:
    """A fingerprint of a loss, a model's function or an option, the same in every process."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return f"{_kind(value)} {hash_of_tensor(value)}"
    if isinstance(value, nn.Module):
        state = [f"{name} {hash_of_tensor(leaf)}" for name, leaf in (*value.named_parameters(), *value.named_buffers())]
        return f"{_name(type(value))} {_hash(chr(10).join([_module_text(value), *state]))}"
    if isinstance(value, functools.partial):
        return ["partial", *map(describe_value, (value.func, list(value.args), dict(value.keywords)))]
    if isinstance(value, (list, tuple)):
        return [describe_value(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): describe_value(part) for key, part in value.items()}
    if isinstance(value, types.MethodType):
        return [describe_value(value.__func__), describe_value(value.__self__)]
    if isinstance(value, types.FunctionType):
        return f"{_name(value)} {_hash(_function_text(value))}"
    call = next((vars(kind)["__call__"] for kind in type(value).__mro__ if "__call__" in vars(kind)), None)
    if isinstance(call, types.FunctionType):
        return f"{_name(type(value))} {_hash(_function_text(call))} {describe_value(_options(value))}"
    return _name(value if isinstance(value, (type, types.BuiltinFunctionType)) else type(value))


def hash_of_tensor(leaf: Tensor) -> str:
    """A hash of a tensor's bytes, wherever and however it lies in memory."""
    digest = hashlib.blake2b(digest_size=16)
    leaf = leaf.detach()
    leaf = leaf if leaf.layout is torch.strided else leaf.to_dense()
    flat = leaf.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    for part in flat.split(_PIECE):
        digest.update(part.cpu().numpy().data)
    return digest.hexdigest()


def _module_text(module: nn.Module) -> str:
    """The modules, their options, and the code of those that are not torch's."""
    own = [type(part) for part in module.modules() if not type(part).__module__.startswith("torch.")]
    code = [f"{_name(kind)} {_function_text(kind.forward)}" for kind in dict.fromkeys(own) if inspect.isfunction(kind.forward)]
    options = [f"{name} {_name(type(part))} {_options(part)}" for name, part in module.named_modules()]
    return "\n".join([repr(module), *options, *code])


def _options(value: Any) -> list[str]:
    """The attributes of an object that are numbers, texts or tuples of such (of a module, `training` is one)."""
    simple = (bool, int, float, str, type(None))
    found = {name: part for name, part in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    return [
        f"{name}={part!r}"
        for name, part in sorted(found.items())
        if isinstance(part, simple) or (isinstance(part, tuple) and all(isinstance(entry, simple) for entry in part))
    ]


def _function_text(function: types.FunctionType) -> str:
    cells = [_cell(cell) for cell in function.__closure__ or ()]
    return json.dumps([_code_text(function.__code__), describe_value(function.__defaults__), cells], default=str)


def _cell(cell: types.CellType) -> Json:
    try:
        value = cell.cell_contents
    except ValueError:
        return "empty"
    return _name(value) if isinstance(value, types.FunctionType) else describe_value(value)


def _code_text(code: types.CodeType) -> str:
    constants = [_code_text(part) if isinstance(part, types.CodeType) else _constant(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _name(value: Any) -> str:
    """Without the module, which is ``__main__`` in one process and has a name in another."""
    return getattr(value, "__qualname__", type(value).__qualname__)


def _kind(leaf: Tensor) -> str:
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


