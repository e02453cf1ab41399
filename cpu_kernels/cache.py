"""Compiled code kept on disk between processes."""

from numba.core.caching import NullCache


class CodeCache(NullCache):
    """Placeholder base until the store below exists: keeps nothing."""

    def __init__(self, function, variant=()):
        self.function, self.variant = function, variant
