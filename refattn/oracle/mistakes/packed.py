"""Mistakes of packed calls: where sequences begin and end."""

from dataclasses import replace

import numpy as np

from refattn.oracle.mistakes.record import Mistake


def _packed(change):
    """Cut a packed problem by changed boundaries: change(packed, n) -> (first row, stop row, first
    key, stop key).
    """

    def sequence(packed, n):
        part = packed.part(n)
        _, _, first, stop = change(packed, n)
        first, stop = max(int(first), 0), min(int(stop), packed.key.shape[1])
        rows = slice(packed.cu_q[n], packed.cu_q[n + 1])
        planes = {
            name: _wider(getattr(packed, name), rows, slice(first, stop))
            for name in ("bias", "mask", "dropout_mask")
        }
        length = np.asarray(stop - first)
        return replace(
            part,
            key=packed.key[:, first:stop],
            value=packed.value[:, first:stop],
            kv_lengths=length,
            q_offset=length - part.q_len,
            **planes,
        )

    return sequence


def _wider(plane, rows, keys):
    return None if plane is None else plane[:, rows, keys]


def _kv(packed, n):
    return packed.cu_q[n], packed.cu_q[n + 1], packed.cu_kv[n], packed.cu_kv[n + 1]


def _one_segment(packed, n):
    q0, q1, _, _ = _kv(packed, n)
    return q0, q1, 0, packed.cu_kv[-1]


def _leak_before(packed, n):
    q0, q1, _, k1 = _kv(packed, n)
    return q0, q1, 0, k1


def _leak_one(packed, n):
    q0, q1, k0, k1 = _kv(packed, n)
    return q0, q1, k0, k1 + 1


def _query_boundaries(packed, n):
    q0, q1, _, _ = _kv(packed, n)
    return q0, q1, q0, q1


def _last_of_segment(packed, n):
    q0, q1, k0, k1 = _kv(packed, n)
    return q0, q1, k0, max(k1 - 1, k0)


def _next_segment(packed, n):
    q0, q1, _, _ = _kv(packed, n)
    n = (n + 1) % packed.num_parts
    return q0, q1, packed.cu_kv[n], packed.cu_kv[n + 1]


def _shifted_segment(packed, n):
    q0, q1, k0, k1 = _kv(packed, n)
    return q0, q1, k0 - 1, k1 - 1


def _packed_mistake(id, says, change_form, remedy="", **more):
    return Mistake(id, says, remedy, form="packed", change_form=change_form, **more)


PACKED = (
    _packed_mistake(
        "packed_boundaries_ignored",
        "cu_kv is ignored: every row sees the keys of all sequences",
        _packed(_one_segment),
        issues=("NVIDIA-NeMo/RL #2105", "huggingface/transformers #46634"),
    ),
    _packed_mistake(
        "packed_leak_before",
        "a row sees the keys of earlier sequences",
        _packed(_leak_before),
        issues=("axolotl-ai-cloud/axolotl #1375",),
    ),
    _packed_mistake("packed_leak_one", "a row sees the first key of the next sequence", _packed(_leak_one)),
    _packed_mistake(
        "packed_last_key_dropped", "the last key of every sequence is dropped", _packed(_last_of_segment)
    ),
    _packed_mistake(
        "packed_query_boundaries",
        "keys are cut at cu_q instead of cu_kv",
        _packed(_query_boundaries),
        "cu_kv=cu_q",
    ),
    _packed_mistake(
        "packed_next_sequence", "every sequence reads the keys of the next", _packed(_next_segment)
    ),
    _packed_mistake(
        "packed_one_early", "the keys of every sequence start one too early", _packed(_shifted_segment)
    ),
)
