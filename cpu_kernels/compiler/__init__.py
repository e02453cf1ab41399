"""Numba: its options, its cache on disk, what it says while it compiles."""
