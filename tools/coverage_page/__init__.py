"""What the coverage page states, measured: which layer, option and program takes which path, and what is refused.

``python -m tools.coverage_page`` runs every case and writes the tables into ``docs/reference/coverage.md``.
"""
