"""Hashes of samples: what they depend on and what not; the fingerprint of a data set; the mix against its definition."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hesse.core.fingerprint import fingerprint, sample_hashes
from hesse.core.mixing import mix, mix_number, signed

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(7, 3, 5, generator=GENERATOR), torch.tensor([0, 1, 2, 0, 1, 2, 3])


def test_mix_is_the_finalizer_of_splitmix64() -> None:
    # the first three numbers of the generator from seed 1234567, from Vigna's splitmix64.c
    published = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    golden = 0x9E3779B97F4A7C15
    states = [signed(1234567 + (k + 1) * golden) for k in range(3)]
    assert [number % 2**64 for number in mix(torch.tensor(states)).tolist()] == list(published)
    assert [mix_number(state) % 2**64 for state in states] == list(published)


def test_a_sample_hashes_alike_wherever_it_comes(untouched: None) -> None:
    whole = sample_hashes(X, Y)
    assert whole.shape == (7,) and whole.dtype == torch.int64
    assert len(set(whole.tolist())) == 7
    order = torch.tensor([4, 0, 6])
    assert torch.equal(sample_hashes(X[order], Y[order]), whole[order])
    assert torch.equal(torch.cat([sample_hashes(X[:1], Y[:1]), sample_hashes(X[1:], Y[1:])]), whole)
    assert torch.equal(sample_hashes((X, Y)), sample_hashes((X, Y)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int16, torch.bfloat16, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (8, 2)])
def test_one_changed_element_is_seen_in_every_dtype_and_width(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    data = torch.randint(0, 2, (6, *shape), generator=GENERATOR)
    before = sample_hashes(data.to(dtype))
    for place in range(data[0].numel()):
        changed = data.clone()
        changed.view(6, -1)[2, place] = 1 - data.view(6, -1)[2, place]
        changed = changed.to(dtype)
        assert (sample_hashes(changed) != before).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
def test_changed_signs_do_not_cancel(dtype: torch.dtype) -> None:
    one = 1 - 2 * torch.eye(48)
    two = torch.stack([one[i] * one[j] for i in range(48) for j in range(i)])
    signs = torch.cat([torch.ones(1, 48), -torch.ones(1, 48), one, two]).to(dtype)
    assert len(sample_hashes(signs).unique()) == len(signs)
    mirrored = torch.stack([X.flatten(1), -X.flatten(1), X.flip(-1).flatten(1), X.flip(-2).flatten(1)]).flatten(0, 1)
    assert len(sample_hashes(mirrored.to(dtype)).unique()) == 28 or dtype == torch.int8


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.cat([x[:1], x])[1:],
        lambda x: torch.cat([torch.zeros(1), x.flatten()])[1:].reshape(x.shape),
        lambda x: x.clone().requires_grad_(),
        lambda x: x.to_sparse(),
        lambda x: torch.stack([x, x], -1)[..., 0],
    ],
)
def test_layout_does_not_matter(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert torch.equal(sample_hashes(view(X), Y), sample_hashes(X, Y))
    wide = X[:, :, :4]
    assert torch.equal(sample_hashes(view(wide), Y), sample_hashes(wide, Y))


def test_rows_of_more_words_than_one_piece() -> None:
    wide = torch.zeros(3, 2**19 + 3, dtype=torch.float64)
    wide[1, -1], wide[2, 0] = 1, 1
    hashes = sample_hashes(wide)
    assert len(set(hashes.tolist())) == 3
    assert torch.equal(sample_hashes(wide[1:]), hashes[1:])
    many = torch.arange(2**19).reshape(-1, 1)
    assert len(sample_hashes(many).unique()) == 2**19


OTHERS: dict[str, Any] = {
    "dtype": (X.double(), Y),
    "bytes read as another type": (X.view(torch.int32), Y),
    "shape": (X.reshape(7, 5, 3), Y),
    "order": (Y, X),
    "name": {"x": X, "y": Y},
    "other name": {"x": X, "z": Y},
    "missing": (X,),
    "number": (X, Y, 0.5),
    "other number": (X, Y, 0.25),
    "0-d tensor": (X, Y, torch.tensor(0.5)),
    "other 0-d tensor": (X, Y, torch.tensor(0.25)),
    "text": (X, Y, "a"),
    "other text": (X, Y, "b"),
}


def test_names_types_shapes_and_shared_leaves_count() -> None:
    seen = {name: tuple(sample_hashes(batch).tolist()) for name, batch in OTHERS.items()} | {
        "plain": tuple(sample_hashes((X, Y)).tolist())
    }
    assert len(set(seen.values())) == len(seen)
    assert all(len(hashes) == 7 for hashes in seen.values())


def test_arrays_mappings_and_objects() -> None:
    assert torch.equal(sample_hashes((X.numpy(), Y)), sample_hashes((X.numpy().copy(), Y)))
    changed = X.numpy().copy()
    changed[5, 1, 1] += 1
    assert (sample_hashes((changed, Y)) != sample_hashes((X.numpy(), Y))).nonzero().tolist() == [[5]]
    nested = UserDict({"ids": Y})
    assert len(sample_hashes(nested)) == 7
    assert not torch.equal(sample_hashes(nested), sample_hashes(UserDict({"ids": Y + 1})))
    assert torch.equal(sample_hashes((Y, object())), sample_hashes((Y, object())))
    assert torch.equal(sample_hashes(np.float32(2.0)), sample_hashes(np.float32(2.0)))


def test_renamed_keys_are_seen_whatever_they_lead_to() -> None:
    """A key of an array, a number, a text or None; nesting, and a dot in a name."""
    batches = [
        *({"x": X, key: Y.numpy()} for key in ("labels", "label")),
        *({"x": X, "mask": mask, "more": {key: held}} for key in ("a", "b") for mask, held in ((None, 3), (3, None))),
        *({"x": X, key: "text"} for key in ("language", "lang")),
        *(UserDict({"x": X, key: Y.numpy(), "n": 1}) for key in ("labels", "label")),
        {"a.b": X},
        {"a": {"b": X}},
        {"a": X, "b": 1},
        {"a": X, "c": 1},
    ]
    seen = [tuple(sample_hashes(batch).tolist()) for batch in batches]
    assert len(set(seen)) == len(seen) and all(len(hashes) == 7 for hashes in seen)


def test_the_order_of_keys_and_of_samples_does_not_matter() -> None:
    one, other = {"x": X, "y": Y.numpy(), "flag": True, "n": 2}, {"n": 2, "flag": True, "y": Y.numpy(), "x": X}
    hashes = sample_hashes(one)
    assert torch.equal(hashes, sample_hashes(other))
    parts = [sample_hashes({"x": X[part], "y": Y[part].numpy(), "flag": True, "n": 2}) for part in (slice(4, 7), slice(0, 4))]
    assert fingerprint(*parts) == fingerprint(hashes)


def test_leaves_without_common_samples_are_one_sample() -> None:
    whole = sample_hashes((torch.zeros(3, 2), torch.zeros(2)))
    assert whole.shape == (1,)
    assert not torch.equal(whole, sample_hashes((torch.zeros(2, 3), torch.zeros(2))))
    assert not torch.equal(sample_hashes(1.0), sample_hashes(2.0))
    assert sample_hashes(torch.zeros(0, 3)).shape == (0,)


def test_fingerprint_forgets_the_order_and_nothing_else() -> None:
    hashes = sample_hashes(X, Y)
    value = fingerprint(hashes)
    assert value == fingerprint(hashes[:3], hashes[3:]) == fingerprint(hashes.flip(0))
    assert value == 7 * 2**64 + sum(h % 2**64 for h in hashes.tolist()) % 2**64
    dropped, doubled = fingerprint(hashes[1:]), fingerprint(hashes, hashes[:1])
    swapped = Y.clone()
    swapped[[0, 1]] = Y[[1, 0]]
    pixel = X.clone()
    pixel[3, 2, 2] = torch.nextafter(pixel[3, 2, 2], torch.tensor(9.0))
    others = {dropped, doubled, fingerprint(sample_hashes(X, swapped)), fingerprint(sample_hashes(pixel, Y)), fingerprint()}
    assert len(others | {value}) == 6


def test_neighboring_contents_give_unrelated_hashes() -> None:
    hashes = sample_hashes(torch.arange(4096))
    bits = (hashes[:, None] >> torch.arange(64)) & 1
    flips = (bits[1:] ^ bits[:-1]).double()
    assert (flips.mean(0) - 0.5).abs().max() < 5 * 0.5 / 4095**0.5  # five standard errors for each of the 64 bits
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / (4095 * 64) ** 0.5
