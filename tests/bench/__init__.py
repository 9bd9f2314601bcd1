"""Benchmarks, each beside its peers in the same run; a ratio is what counts."""
