"""hesse and its peers side by side, in units of one gradient: `python benchmarks/run.py`."""
