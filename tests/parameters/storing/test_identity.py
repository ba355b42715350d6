"""Fingerprints are the same in every process, and differ where what they stand for does."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hesse.core.errors import UnsupportedError
from hesse.operators.projections import random_projection
from hesse.parameters import ParameterJacobian, parameter_jacobian
from hesse.parameters.storing.identity import describe_operator, hash_of_tensor, identity_of

from . import identifying
from .small import batches, model


def test_every_process_finds_the_same() -> None:
    program, threads = str(Path(identifying.__file__)), torch.get_num_threads()
    command = [sys.executable, program, str(threads)]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(identifying.main()))


def test_losses_are_told_apart() -> None:
    found = identifying.main()["losses"]
    for first, second in itertools.combinations(found, 2):
        assert found[first] != found[second], (first, second)


def test_hashes_see_content_and_nothing_else() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    strided = [values.mT.contiguous().mT, torch.stack([values, values], -1)[..., 0]]
    same = [values.clone(), *strided, values.clone().requires_grad_()]
    assert {hash_of_tensor(part) for part in same} == {hash_of_tensor(values)}
    changed = values.clone()
    changed[3, 5] = torch.nextafter(changed[3, 5], torch.tensor(9.0))
    assert hash_of_tensor(changed) != hash_of_tensor(values)
    for dtype in (torch.bfloat16, torch.complex64, torch.int64, torch.bool):
        assert len(hash_of_tensor(values.to(dtype))) == 32
    assert hash_of_tensor(values.to_sparse()) == hash_of_tensor(values)
    assert hash_of_tensor(torch.zeros(0)) != hash_of_tensor(torch.zeros(1))


def test_projections_by_their_seed() -> None:
    J = parameter_jacobian(model(), nn.CrossEntropyLoss(), batches())
    made = [random_projection(J, k, kind=kind, seed=seed) for k, kind, seed in
            ((5, "gaussian", 0), (5, "gaussian", 1), (6, "gaussian", 0), (5, "rademacher", 0), (5, "fjlt", 0))]  # fmt: skip
    assert len({describe_operator(P) for P in made}) == 5
    assert describe_operator(made[0]) == describe_operator(random_projection(J, 5, seed=0))


def test_jacobians_that_cannot_be_made_again() -> None:
    J = parameter_jacobian(model(), nn.CrossEntropyLoss(), batches()[0])
    inner = ParameterJacobian(J.source, J.facts, J.params)
    with pytest.raises(UnsupportedError, match="inside of another quantity"):
        identity_of(inner, {})
