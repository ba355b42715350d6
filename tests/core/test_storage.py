"""Tensors in files: round trips, files that are no good, writing all or nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from hesse.core import storage
from hesse.core.errors import DataError, MissingExtraError, UnsupportedError
from hesse.core.storage import FORMAT, load_tensors, save_tensors

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.complex128, torch.complex64, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path, untouched: None) -> None:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    if dtype.is_complex:
        base = base * (1 + 2j)
    tensors = {
        "a.weight": base,
        "transposed": base.mT,
        "shared": base[1:, ::2],
        "conjugate": base.conj(),
        "0-d": base[0, 0],
        "empty": base[:0],
        "grad": base.clone().requires_grad_(dtype.is_floating_point or dtype.is_complex),
    }
    path = tmp_path / "t.safetensors"
    save_tensors(path, tensors, "test", {"numbers": [1.5, None, float("inf")], "text": "ä"})
    loaded, header = load_tensors(path, "test")
    assert list(loaded) == sorted(loaded) or set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype and loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name], tensor.detach())
        assert not loaded[name].requires_grad
    assert header == {"numbers": [1.5, None, float("inf")], "text": "ä"}


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(str(path), {"x": torch.arange(3)}, "test", {})
    assert torch.equal(safetensors.torch.load_file(path)["x"], torch.arange(3))
    with safetensors.safe_open(path, framework="pt") as file:
        entry = json.loads(file.metadata()["hesse"])
    assert (entry["format"], entry["kind"]) == (FORMAT, "test")
    assert entry["version"]


def test_tensors_load_onto_another_device(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"x": torch.ones(2)}, "test", {})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert load_tensors(path, "test", device)[0]["x"].device.type == device


def rewrite(path: Path, entry: Any) -> None:
    text = entry if isinstance(entry, str) else json.dumps(entry)
    safetensors.torch.save_file({"x": torch.ones(2)}, path, metadata={"hesse": text})


def test_bad_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_tensors(good, {"x": torch.ones(500)}, "test", {})
    data = good.read_bytes()
    bad = tmp_path / "bad.safetensors"
    for content in (data[:-1], data[:100], data[:4], b"", b"\x80\x04" + data, b"PK\x03\x04" * 100):
        bad.write_bytes(content)
        with pytest.raises(DataError, match="damaged or no safetensors"):
            load_tensors(bad, "test")
    safetensors.torch.save_file({"x": torch.ones(2)}, bad)
    with pytest.raises(DataError, match="written by something else"):
        load_tensors(bad, "test")
    for entry in ("no json", [1], {"format": 1}, "null"):
        rewrite(bad, entry)
        with pytest.raises(DataError, match="written by something else"):
            load_tensors(bad, "test")
    rewrite(bad, {"format": FORMAT + 1, "version": "9.9", "kind": "test", "complex": [], "header": {}})
    with pytest.raises(DataError, match=r"format 2, written by hesse 9\.9(.|\n)*--upgrade"):
        load_tensors(bad, "test")
    with pytest.raises(DataError, match="holds 'test', not 'operator'"):
        load_tensors(good, "operator")
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "none.safetensors", "test")


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "t.safetensors", tmp_path / "link"
    link.symlink_to(path)
    save_tensors(path, {"x": torch.ones(2)}, "test", {})
    mapped = load_tensors(path, "test")[0]["x"]
    save_tensors(link, {"x": torch.zeros(3)}, "test", {})
    assert torch.equal(load_tensors(path, "test")[0]["x"], torch.zeros(3))
    assert torch.equal(mapped, torch.ones(2))
    assert link.is_symlink()

    def fail(source: Any, target: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_tensors(path, {"x": torch.ones(4)}, "test", {})
    monkeypatch.undo()
    with pytest.raises(UnsupportedError, match="to_dense"):
        save_tensors(path, {"x": torch.eye(2).to_sparse()}, "test", {})
    with pytest.raises(TypeError, match="JSON"):
        save_tensors(path, {}, "test", {"x": object()})
    assert torch.equal(load_tensors(path, "test")[0]["x"], torch.zeros(3))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "t.safetensors"]


def test_without_safetensors_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: save_tensors(tmp_path / "x", {}, "test", {}), lambda: load_tensors(tmp_path / "x", "test")):
        with pytest.raises(MissingExtraError, match=r"hesse\[storage\]"):
            call()
