"""Writes the coverage page: ``python -m tools.coverage_page``, from the root of the repository."""

from __future__ import annotations

from tools.coverage_page.page import PAGE, written


def main() -> None:
    """Measure and write."""
    PAGE.write_text(written(PAGE.read_text()))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
