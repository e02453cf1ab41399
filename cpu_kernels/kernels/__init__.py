"""Compiled code: building blocks over tiles of scores, and the drivers made of them. See
cpu_kernels/README.md for the order of reading.
"""
