"""Attention on the CPU at the speed of the machine: the functions of `refattn`, compiled with Numba."""
