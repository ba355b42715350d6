"""Graphs of programs: recorded, drawn as DOT and as one HTML page."""
