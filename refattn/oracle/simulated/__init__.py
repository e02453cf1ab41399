"""Kernels simulated in NumPy: correct ones in low precision, and staged ones whose stages can be
replaced.
"""
