"""Planted bugs, planted faults and sound programs: what checkers and NaN hunters find, and where they cry wolf."""
