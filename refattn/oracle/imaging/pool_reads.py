"""Every other place at which a kernel may read keys and values: one line for each way to a wrong address."""

from __future__ import annotations

from collections.abc import Iterator

from refattn.oracle.imaging.pool import Reads
from refattn.oracle.imaging.pool_contexts import contexts_of_other_heads, other_contexts
from refattn.oracle.imaging.pool_memory import other_axes, other_stretches, other_widths, wrapped_addresses
from refattn.oracle.imaging.pool_pages import other_pages_read
from refattn.oracle.imaging.pool_tiles import other_tiles_read

WAYS = ("keys and values", "values", "keys")


def readings(pool, promising) -> Iterator[Reads]:
    """What may be read in place of a sequence's own keys and values, as far as `promising(value slots,
    visible)` says that it may be so.
    """
    keys_alone = promising(pool.own)
    for words, other, visible in (
        *other_contexts(pool),
        *contexts_of_other_heads(pool),
        *other_pages_read(pool),
        *other_stretches(pool),
        *other_widths(pool),
        *other_axes(pool),
        *wrapped_addresses(pool),
        *other_tiles_read(pool),
    ):
        ways = [way for way in WAYS if way != "keys" and promising(other, visible)]
        ways += ["keys"] if keys_alone else []
        for what in ways if visible is None else ways[:1]:
            key, value = (other if name in what else pool.own for name in ("key", "value"))
            yield Reads(f"{what} are {words}", key, value, visible)
