"""Compiled functions: one run is recorded as a graph of tensor operations, which later calls replay under guards."""
