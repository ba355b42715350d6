"""Checks in a process of their own: the child, what it tells, and how it ended."""
