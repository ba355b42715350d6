"""Every op of a step as it runs: non-finite numbers, headroom, times."""
