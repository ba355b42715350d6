"""Named tensors with a JSON header in one file of the safetensors format: nothing in it is ever executed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import DataError, MissingExtraError, UnsupportedError

FORMAT = 1
_ENTRY = "hesse"
_ASKED = "hesse loads the files that it has saved."


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError(
            "Results are stored in the safetensors format.", "safetensors is not installed", "pip install 'hesse[storage]'"
        ) from error
    return safetensors


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], kind: str, header: Any) -> None:
    """Write tensors and a header to a file, which appears complete or not at all.

    Args:
        path: of the file; one that is there is replaced.
        tensors: by name; of any strided dtype, on any device.
        kind: what the file holds, which `load_tensors` asks for.
        header: anything that JSON can hold.

    Raises:
        MissingExtraError: safetensors is not installed. UnsupportedError: a tensor that is not strided.
    """
    library = _safetensors()
    plain = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    complex_names = [name for name, tensor in tensors.items() if tensor.is_complex()]
    entry = {"format": FORMAT, "version": version("hesse"), "kind": kind, "complex": complex_names, "header": header}
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        library.torch.save_file(plain, temporary, metadata={_ENTRY: json.dumps(entry)})
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(name: str, tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UnsupportedError(
            "Only strided tensors can be stored.", f"{tensor.layout} at '{name}'", "convert it by to_dense()"
        )
    tensor = tensor.detach().resolve_conj().resolve_neg()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.clone(memory_format=torch.contiguous_format)  # safetensors refuses tensors that share memory


def load_tensors(path: str | os.PathLike[str], kind: str, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` has written.

    Args:
        path: of the file.
        kind: what it has to hold.
        device: where the tensors go.

    Returns:
        The tensors by name, and the header.

    Raises:
        DataError: truncated, not written by hesse, of another kind, or of a newer format.
        MissingExtraError: safetensors is not installed. FileNotFoundError: no such file.
    """
    library = _safetensors()
    shown = os.fspath(path)
    try:
        with library.safe_open(shown, framework="pt", device=str(torch.device(device))) as file:
            entry = _entry((file.metadata() or {}).get(_ENTRY), shown, kind)
            # cloned, since they may lie in the mapped file: unaligned, and gone if somebody cuts it
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except library.SafetensorError as error:
        raise DataError(_ASKED, f"'{shown}' is damaged or no safetensors file ({error})", "save it again") from error
    for name in entry["complex"]:
        tensors[name] = torch.view_as_complex(tensors[name])
    return tensors, entry["header"]


def _entry(text: str | None, shown: str, kind: str) -> dict[str, Any]:
    try:
        entry = json.loads(text or "")
        written, found = entry["format"], entry["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(_ASKED, f"'{shown}' was written by something else", "load it with safetensors.torch") from error
    if written > FORMAT:
        raise DataError(
            _ASKED,
            f"'{shown}' has format {written}, written by hesse {entry.get('version')}; this one reads up to {FORMAT}",
            "pip install --upgrade hesse",
        )
    if found != kind:
        raise DataError(_ASKED, f"'{shown}' holds {found!r}, not {kind!r}", f"use the function that loads {found!r}")
    return entry
