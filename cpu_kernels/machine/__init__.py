"""Threads and what limits them."""
