import pytest
from benchmarks.tables import BEGIN, END, render, write_between_markers

OK = {
    "status": "ok",
    "gradient_seconds": 0.01,
    "memory": 3 * 2**20,
    "gradient_memory": 2**20,
    "error": 1e-7,
    "ratio_quartiles": (1, 1),
}


def report(*results):
    return {
        "date": "2026-01-02 03:04 UTC",
        "mode": "quick",
        "threads": 2,
        "machine": {"processor": "Some CPU", "cores": 2, "system": "Linux", "load": 0.25, "python": "3.11.7"},
        "libraries": {"hesse": {"version": "0.1"}, "opacus": {"reason": "cannot be installed: no network"}},
        "models": ["mlp"],
        "results": [{"model": "mlp", **r} for r in results],
        "import_time": {"torch": 1.5, "hesse": 0.02, "repeats": 3},
    }


def row(text, title):
    return next(line for line in text.splitlines() if line.startswith(f"| {title}"))


def test_cells():
    text = render(
        report(
            {"library": "hesse", "quantity": "norms", **OK, "ratio": 1.234},
            {"library": "opacus", "quantity": "norms", **OK, "ratio": 12.34, "memory": 2**24},
            {"library": "hesse", "quantity": "gram", "status": "absent"},
            {"library": "opacus", "quantity": "gram", **OK, "ratio": 2.0, "memory": None},
        )
    )
    assert row(text, "per-sample gradient norms") == "| per-sample gradient norms | **1.23** (3.0 MiB) | 12 (16 MiB) |"
    assert row(text, "Gram matrix") == "| Gram matrix of the per-sample gradients | - | **2.00** |"
    assert "One gradient takes 10 ms and grows the process by 1.0 MiB" in text
    assert (
        "Some CPU, 2 cores, Linux, Python 3.11.7; 2 thread(s) of torch, float32, quick run, load average at its start 0.2"
        in text
    )
    assert "`import hesse` takes 20 ms beyond the 1500 ms of `import torch`" in text


def test_a_wrong_result_shows_no_time_and_is_never_best():
    wrong = {**OK, "status": "wrong", "error": 0.0626, "ratio": 0.5}
    text = render(
        report(
            {"library": "hesse", "quantity": "norms", **OK, "ratio": 1.5},
            {"library": "opacus", "quantity": "norms", **wrong},
        )
    )
    assert row(text, "per-sample gradient norms").endswith("| **1.50** (3.0 MiB) | wrong: relative error 0.06 |")


def test_rounds_that_disagree_are_marked():
    steady = {**OK, "ratio": 1.0, "ratio_quartiles": (0.9, 1.1)}
    text = render(
        report(
            {"library": "hesse", "quantity": "norms", **steady},
            {"library": "opacus", "quantity": "norms", **steady, "ratio": 1.3, "ratio_quartiles": (1.0, 1.5)},
        )
    )
    assert row(text, "per-sample gradient norms").endswith("| **1.00** (3.0 MiB) | ~1.30 (3.0 MiB) |")


def test_rows_that_no_library_offers_are_left_out():
    text = render(
        report(
            {"library": "hesse", "quantity": "norms", **OK, "ratio": 1.5},
            {"library": "hesse", "quantity": "gram", "status": "absent"},
        )
    )
    assert "Gram" not in text and "norms" in text


def test_reasons_are_listed_once():
    refused = {"library": "opacus", "status": "refused", "reason": "RuntimeError: no"}
    failed = {"library": "hesse", "status": "failed", "reason": "its process ended with -11: no message"}
    text = render(
        report(
            {"quantity": "norms", **refused},
            {"quantity": "gram", **refused},
            {"quantity": "gram", **failed},
        )
    )
    assert row(text, "per-sample gradient norms").endswith("| - | refused (a) |")
    assert row(text, "Gram").endswith("| failed (b) | refused (a) |")
    assert text.count("RuntimeError: no") == 1 and "- (b) hesse: its process ended with -11" in text


def test_page_is_replaced_between_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{BEGIN}\nold\n{END}\n\nbelow\n")
    write_between_markers(page, "new")
    write_between_markers(page, "newer")
    assert page.read_text() == f"above\n\n{BEGIN}\n\nnewer\n\n{END}\n\nbelow\n"


def test_page_without_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError):
        write_between_markers(page, "new")
    assert page.read_text() == "nothing"
