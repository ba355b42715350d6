"""All faults and harmless programs, by name; `FROZEN` says which those are that nobody read who wrote what is measured."""

from __future__ import annotations

from benchmarks.nonfinite import (
    benign_cleaned,
    benign_guarded,
    benign_masks,
    benign_routes,
    faults_backward,
    faults_forward,
    faults_machinery,
    faults_networks,
    faults_routes,
    faults_training,
    frozen,
    frozen_benign,
    frozen_networks,
    frozen_routes,
    frozen_training,
)
from benchmarks.nonfinite.fault import Benign, Fault

_OPEN = (faults_forward, faults_backward, faults_networks, faults_machinery, faults_training, faults_routes)
_OPEN_BENIGN = (benign_masks, benign_guarded, benign_cleaned, benign_routes)
_UNREAD = (frozen, frozen_networks, frozen_training, frozen_routes)
_UNREAD_BENIGN = (frozen_benign, frozen_routes)

FAULTS: dict[str, Fault] = {fault.name: fault for part in (*_OPEN, *_UNREAD) for fault in part.FAULTS}
BENIGN: dict[str, Benign] = {program.name: program for part in (*_OPEN_BENIGN, *_UNREAD_BENIGN) for program in part.BENIGN}
FROZEN: frozenset[str] = frozenset(
    [fault.name for part in _UNREAD for fault in part.FAULTS]
    + [program.name for part in _UNREAD_BENIGN for program in part.BENIGN]
)
