"""Benchmarks: the same sweep by this package and by others, side by side on one machine."""
