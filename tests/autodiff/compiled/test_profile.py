"""Profiles count what they are told, in several threads too, and print as a table."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from hesse.autodiff.compiled.profile import OpKey, Profile
from hesse.autodiff.source_lines import Frame
from hesse.core.errors import StructureError

HERE = Frame("/somewhere/model.py", 12, "loss")


def filled(mode: Any) -> Profile:
    profile = Profile(mode)
    profile.miss("first call")
    profile.traced(0.5, 7)
    profile.compiled(2.0)
    profile.ran(0.001)
    for _ in range(2):
        profile.hit()
        profile.ran(0.002)
    profile.fell_back("the function draws random numbers")
    profile.passed(0.003, 0.004)
    profile.op_at(OpKey("aten.mm.default", "forward", HERE), 0.1)
    profile.op_at(OpKey("aten.mm.default", "forward", HERE), 0.2)
    profile.op_at(OpKey("aten.mm.default", "backward", HERE), 0.5)
    profile.op_at(OpKey("aten.tanh.default", "forward", None), 0.2)
    return profile


def test_counts_and_seconds() -> None:
    report = filled("summary").report()
    assert (report.calls, report.hits, report.traces, report.nodes) == (4, 2, 1, 7)
    assert report.misses == {"first call": 1}
    assert report.direct == {"the function draws random numbers": 1}
    assert report.hit_rate == pytest.approx(2 / 3)
    assert (report.tracing, report.compiling) == (0.5, 2.0)
    assert report.running == pytest.approx(0.012)
    assert report.mean_microseconds == pytest.approx(3000)
    assert (report.forward, report.backward, report.passes) == (0.003, 0.004, 1)
    assert not report.ops


def test_ops_by_cost_with_their_shares() -> None:
    ops = filled("detailed").report().ops
    assert [(op.op, op.phase, op.source, op.runs) for op in ops] == [
        ("aten.mm.default", "backward", HERE, 1),
        ("aten.mm.default", "forward", HERE, 2),
        ("aten.tanh.default", "forward", None, 1),
    ]
    assert [op.of_all for op in ops] == pytest.approx([0.5, 0.3, 0.2])
    assert [op.of_phase for op in ops] == pytest.approx([1.0, 0.6, 0.4])


def test_the_table() -> None:
    text = str(filled("detailed").report())
    for part in (
        "calls        4  (3000.0 us each)",
        "cache hits   2  (66.7 %)",
        "1 x first call",
        "1 x the function draws random numbers",
        "tracing      0.5 s",
        "backward     4 ms a call",
        "overall      7 ms a call",
        "model.py:12 loss",
    ):
        assert part in text
    assert "aten" not in str(filled("summary").report())
    assert str(Profile().report()).splitlines()[1] == "calls        0  (0.0 us each)"


def test_the_table_ends_after_ten_ops() -> None:
    profile = Profile("detailed")
    for number in range(13):
        profile.op_at(OpKey(f"aten.op{number}.default", "forward", None), float(number))
    assert len(profile.report().ops) == 13
    text = str(profile.report())
    assert "aten.op3.default" in text
    assert "aten.op2.default" not in text
    assert text.endswith("... and 3 more")


def test_off_counts_nothing_and_reset_forgets() -> None:
    assert filled("off").report() == Profile("off").report()
    assert not Profile("off").active
    profile = filled("detailed")
    kept = profile.report()
    profile.reset()
    assert profile.report() == Profile("detailed").report()
    assert kept.calls == 4


def test_nodes_of_a_program_name_their_line() -> None:
    graph = torch.fx.Graph()
    node = graph.call_function(torch.ops.aten.sin.default, (graph.placeholder("x"),))
    node.meta.update(source=tuple(HERE), phase="backward")
    profile = Profile("detailed")
    profile.op(node, 0.25)
    (op,) = profile.report().ops
    assert (op.op, op.phase, op.source, op.seconds) == ("aten.sin.default", "backward", HERE, 0.25)


def test_other_modes_are_refused() -> None:
    given: Any = "verbose"
    with pytest.raises(StructureError, match="'detailed'"):
        Profile(given)


def test_threads() -> None:
    profile = Profile("detailed")

    def work() -> None:
        for _ in range(500):
            profile.hit()
            profile.ran(1.0)
            profile.op_at(OpKey("op", "forward", None), 1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = profile.report()
    assert (report.hits, report.calls, report.running, report.ops[0].runs) == (2000, 2000, 2000.0, 2000)
