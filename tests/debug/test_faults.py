"""Planted faults are found at their line, and harmless programs raise no alarm: a sample of the benchmark's programs a run."""

import warnings

import pytest
from benchmarks.nonfinite.sets import BENIGN, FAULTS
from benchmarks.nonfinite.ways import WAYS
from benchmarks.nonfinite.worker import judge

FAULTS_A_RUN, BENIGN_A_RUN, SENTINEL_A_RUN = 14, 10, 5
NOT_NAMED = {
    "hesse": {"through_a_python_number"},  # the quotient is NaN, but what the loss is multiplied by is a number of Python's
    "sentinel": {  # these hold their state in plain tensors, of which the sentinel has no copy
        "through_a_python_number", "func_grad", "func_hessian", "per_sample_gradients", "average_corrected_too_early",
    },
}  # fmt: skip


def answer(program, way):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WAYS[way](program.step())


@pytest.mark.parametrize(("way", "keep"), [("hesse", FAULTS_A_RUN), ("sentinel", SENTINEL_A_RUN)])
def test_the_marked_line_is_named(sweep, way, keep):
    wrong = {}
    for fault in sweep([fault for fault in FAULTS.values() if fault.name not in NOT_NAMED[way]], keep):
        found = answer(fault, way)
        judged = judge(fault, found)
        if judged["status"] != "right" or not judged["phase_right"]:
            wrong[fault.name] = (judged, found)
    assert not wrong, "\n\n".join(f"{name}: {judged}\n{found.said}" for name, (judged, found) in wrong.items())


@pytest.mark.parametrize(("way", "keep"), [("hesse", BENIGN_A_RUN), ("sentinel", SENTINEL_A_RUN)])
def test_no_alarm(sweep, way, keep):
    alarms = {program.name: found for program in sweep(list(BENIGN.values()), keep) if (found := answer(program, way)).found}
    assert not alarms, "\n\n".join(f"{name}:\n{found.said}" for name, found in alarms.items())
