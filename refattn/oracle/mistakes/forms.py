"""Mistakes of the packed, paged, latent and rotary forms, and of merging states."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from refattn.oracle.forms import latent_dense, rotary_dense
from refattn.oracle.mistakes.record import Mistake
from refattn.problem import PagedProblem

# packed


def _packed(change):
    """Cut a packed problem by changed boundaries: change(packed, n) -> (first row, stop row, first key, stop key)."""

    def sequence(packed, n):
        part = packed.sequence(n)
        _, _, first, stop = change(packed, n)
        first, stop = max(int(first), 0), min(int(stop), packed.key.shape[1])
        rows = slice(packed.cu_q[n], packed.cu_q[n + 1])
        planes = {name: _wider(getattr(packed, name), rows, slice(first, stop)) for name in ("bias", "mask", "dropout_mask")}
        length = np.asarray(stop - first)
        return replace(part, key=packed.key[:, first:stop], value=packed.value[:, first:stop], kv_lengths=length,
                       q_offset=length - part.q_len, **planes)  # fmt: skip

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
    n = (n + 1) % packed.num_sequences
    return q0, q1, packed.cu_kv[n], packed.cu_kv[n + 1]


def _shifted_segment(packed, n):
    q0, q1, k0, k1 = _kv(packed, n)
    return q0, q1, k0 - 1, k1 - 1


# paged


def _paged(change):
    """Gather changed pages: change(paged, b) -> (block_table row, key_pages, value_pages)."""

    def sequence(paged, b):
        row, key_pages, value_pages = change(paged, b)
        table = paged.block_table.copy()
        table[b] = np.clip(row, 0, len(key_pages) - 1)
        return PagedProblem.sequence(replace(paged, block_table=table, key_pages=key_pages, value_pages=value_pages), b)

    return sequence


def _table(change):
    return _paged(lambda p, b: (change(p, b), p.key_pages, p.value_pages))


def _own_pages(paged, b):
    """The pages of sequence b alone, in order: what is changed there is not changed in a whole cache for each sequence."""
    row = np.clip(paged.block_table[b], 0, len(paged.key_pages) - 1)
    return np.arange(len(row)), paged.key_pages[row], paged.value_pages[row]


def _slots_rolled(paged, b):
    row, key_pages, value_pages = _own_pages(paged, b)
    return row, np.roll(key_pages, -1, axis=2), np.roll(value_pages, -1, axis=2)


def _heads_and_slots_swapped(paged, b):
    def misread(pages):
        count, heads, size, dim = pages.shape
        return pages.reshape(count, size, heads, dim).swapaxes(1, 2)

    row, key_pages, value_pages = _own_pages(paged, b)
    return row, misread(key_pages), misread(value_pages)


def _value_pages_of_key(paged, b):
    """The block table is applied to the keys only; values are read in page order."""
    row, key_pages, _ = _own_pages(paged, b)
    return row, key_pages, paged.value_pages[row % len(paged.value_pages)]


def _whole_pages(paged, b):
    """The length is rounded up to a whole page."""
    size = paged.page_size
    length = np.minimum(-(-paged.kv_lengths // size) * size, paged.block_table.shape[1] * size)
    return PagedProblem.sequence(replace(paged, kv_lengths=length), b)


def _partial_page_lost(paged, b):
    length = paged.kv_lengths // paged.page_size * paged.page_size
    return PagedProblem.sequence(replace(paged, kv_lengths=length), b)


# latent


@dataclass(frozen=True)
class _Changed:
    """latent_dense of a changed problem; `inputs` gives the changed problem itself."""

    inputs: Callable

    def __call__(self, p):
        return latent_dense(self.inputs(p))


def _latent(**changes):
    """Changed fields of the problem; each change takes the problem."""
    return _Changed(lambda p: replace(p, **{name: change(p) for name, change in changes.items()}))


def _latent_scale(value):
    return _latent(scale=lambda p: float(value(p)))


def _widths(p):
    return p.q_nope.shape[-1], p.q_rope.shape[-1], p.kv_latent.shape[-1]


def _halves_swapped(x):
    half = x.shape[-1] // 2
    return np.concatenate([x[..., half:], x[..., :half]], axis=-1)


def _reordered(x):
    """Interleaved pairs written half by half."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)


def _rope_first_in_key(p):
    dense = latent_dense(p)
    nope = p.q_nope.shape[-1]
    return replace(dense, key=np.concatenate([dense.key[..., nope:], dense.key[..., :nope]], axis=-1))


def _key_weights_of_first_head(p):
    """The key weights of head 0 serve all heads."""
    return np.broadcast_to(p.w_uk[:1], p.w_uk.shape)


def _mscale_squared(p):
    """What the given scale has besides 1/sqrt(nope + rope)."""
    return p.scale * (p.q_nope.shape[-1] + p.q_rope.shape[-1]) ** 0.5


def _cached_row(p, change):
    """The rows [latent, rope] of the cache rearranged, and read as [latent, rope]."""
    rank = p.kv_latent.shape[-1]
    row = change(np.concatenate([p.kv_latent, p.k_rope], axis=-1), rank)
    return replace(p, kv_latent=row[..., :rank], k_rope=row[..., rank:])


def _values_of_last_dims(p):
    """The values are the last kv_lora_rank dims of a cache row [latent, rope], and not the first."""
    rank, width = p.kv_latent.shape[-1], p.k_rope.shape[-1]
    row = np.concatenate([p.kv_latent, p.k_rope], axis=-1).astype(np.float64)
    values = row[..., width : width + rank][..., None, :, :] @ np.swapaxes(np.asarray(p.w_uv, np.float64), -1, -2)
    return replace(latent_dense(p), value=values)


def _reshaped(array):
    """(H, N, C) read from a buffer laid out (N, H, C)."""
    h, n, c = array.shape
    return array.reshape(n, h, c).swapaxes(0, 1)


# rotary


def _rope(q=None, k=None):
    """rotary_dense with changed settings for query and key; q, k map the right settings to the wrong ones."""
    same = lambda rope: rope  # noqa: E731
    return lambda p: rotary_dense(p, (q or same)(p.rope), (k or q or same)(p.rope))


def _keep(rope):
    return rope


def _other_layout(rope):
    return replace(rope, layout="interleaved" if rope.layout == "half" else "half")


def _rows_from_zero(p):
    start = np.zeros_like(np.asarray(p.dense.q_offset))
    turned = rotary_dense(replace(p, dense=replace(p.dense, q_offset=start)))
    return replace(turned, q_offset=p.dense.q_offset)


def _twice(p):
    turned = rotary_dense(p)
    return rotary_dense(replace(p, dense=turned))


FORMS = (
    Mistake("packed_boundaries_ignored", "cu_kv is ignored: every row sees the keys of all sequences", "", form="packed", change_form=_packed(_one_segment),
            issues=("NVIDIA-NeMo/RL #2105", "huggingface/transformers #46634")),
    Mistake("packed_leak_before", "a row sees the keys of earlier sequences", "", form="packed", change_form=_packed(_leak_before),
            issues=("axolotl-ai-cloud/axolotl #1375",)),
    Mistake("packed_leak_one", "a row sees the first key of the next sequence", "", form="packed", change_form=_packed(_leak_one)),
    Mistake("packed_last_key_dropped", "the last key of every sequence is dropped", "", form="packed", change_form=_packed(_last_of_segment)),
    Mistake("packed_query_boundaries", "keys are cut at cu_q instead of cu_kv", "cu_kv=cu_q", form="packed", change_form=_packed(_query_boundaries)),
    Mistake("packed_next_sequence", "every sequence reads the keys of the next", "", form="packed", change_form=_packed(_next_segment)),
    Mistake("packed_one_early", "the keys of every sequence start one too early", "", form="packed", change_form=_packed(_shifted_segment)),
    Mistake("page_off_by_one", "pages are read one place too far in block_table", "", form="paged", change_form=_table(lambda p, b: np.roll(p.block_table[b], -1))),
    Mistake("page_number_off_by_one", "the page after the one in block_table is read", "", form="paged", change_form=_table(lambda p, b: (p.block_table[b] + 1) % len(p.key_pages))),
    Mistake("page_table_of_first", "every sequence uses the block_table row of the first", "", form="paged", change_form=_table(lambda p, b: p.block_table[0])),
    Mistake("page_table_ignored", "pages are read in order, block_table is ignored", "", form="paged", change_form=_table(lambda p, b: np.arange(p.block_table.shape[1]))),
    Mistake("page_table_backwards", "the pages of a sequence are read in reverse order", "", form="paged",
            change_form=_table(lambda p, b: _backwards(p, b))),
    Mistake("page_slot_off_by_one", "slots within a page are read one too late", "", form="paged", change_form=_paged(_slots_rolled)),
    Mistake("page_heads_and_slots_swapped", "pages are read as (page_size, num_kv_heads, dim)", "key_pages.swapaxes(1, 2)", form="paged", change_form=_paged(_heads_and_slots_swapped),
            issues=("FlashInfer NHD / HND",)),
    Mistake("page_table_for_keys_only", "values are read in page order, only keys go through block_table", "", form="paged", change_form=_paged(_value_pages_of_key)),
    Mistake("page_tail_seen", "the unused slots of the last page take part", "respect kv_lengths inside the last page", form="paged", change_form=_whole_pages),
    Mistake("page_partial_dropped", "keys in a partly filled last page are dropped", "", form="paged", change_form=_partial_page_lost),
    Mistake("mla_scale_of_latent_width", "the scale is 1/sqrt(kv_lora_rank + qk_rope_head_dim)", "scale=(kv_lora_rank + qk_rope_head_dim) ** -0.5", form="latent",
            change_form=_latent_scale(lambda p: (_widths(p)[2] + _widths(p)[1]) ** -0.5), issues=("deepseek-ai/FlashMLA default", "vllm-project/vllm #41569")),
    Mistake("mla_scale_of_latent_rank", "the scale is 1/sqrt(kv_lora_rank)", "scale=kv_lora_rank ** -0.5", form="latent", change_form=_latent_scale(lambda p: _widths(p)[2] ** -0.5)),
    Mistake("mla_scale_of_nope", "the scale is 1/sqrt(qk_nope_head_dim): the rotary part is forgotten", "scale=qk_nope_head_dim ** -0.5", form="latent",
            change_form=_latent_scale(lambda p: _widths(p)[0] ** -0.5)),
    Mistake("mla_scale_without_mscale", "the given scale (with mscale squared) is ignored", "scale=None", ("own mla scale",), form="latent",
            change_form=_latent_scale(lambda p: (_widths(p)[0] + _widths(p)[1]) ** -0.5), issues=("huggingface/transformers #47435", "onnxruntime/mobius #548")),
    Mistake("mla_scale_with_mscale_once", "mscale is applied once instead of squared", "scale=mscale / sqrt(nope + rope)", ("own mla scale",), form="latent",
            change_form=_latent_scale(lambda p: (abs(p.scale) * (_widths(p)[0] + _widths(p)[1]) ** -0.5) ** 0.5), issues=("NVIDIA/Megatron-LM #1429",)),
    Mistake("mla_rope_dropped", "the rotary part is missing from the scores", "", form="latent", change_form=_latent(q_rope=lambda p: np.zeros_like(p.q_rope))),
    Mistake("mla_nope_dropped", "the part without rotation is missing from the scores", "", form="latent", change_form=_latent(q_nope=lambda p: np.zeros_like(p.q_nope))),
    Mistake("mla_rope_halves_swapped", "the halves of the rotary query are swapped", "", form="latent", change_form=_latent(q_rope=lambda p: _halves_swapped(p.q_rope))),
    Mistake("mla_rope_layouts_mixed", "the rotary query is in half order, the rotary key interleaved", "", form="latent", change_form=_latent(q_rope=lambda p: _reordered(p.q_rope)),
            issues=("modular/modular #5647", "hw-native-sys/pypto-lib #244")),
    Mistake("mla_rope_first_in_key", "the key is [rope, nope], the query [nope, rope]", "", form="latent", change_form=_rope_first_in_key,
            issues=("DeepSeek-V3.2 indexer order",)),
    Mistake("mla_mscale_on_rope_twice", "mscale squared is in the scale and once more on the rotary part", "divide the rotary query by mscale squared", ("own mla scale",),
            form="latent", change_form=_latent(q_rope=lambda p: p.q_rope.astype(np.float64) * _mscale_squared(p)), issues=("kekzl/imp #880",)),
    Mistake("mla_latent_and_rope_swapped", "rows of the cache are [rope, latent] where [latent, rope] is read", "", form="latent",
            change_form=_Changed(lambda p: _cached_row(p, lambda row, rank: np.roll(row, row.shape[-1] - rank, axis=-1))),
            issues=("FlashInfer 576 = ckv | kpe",)),
    Mistake("mla_values_of_last_dims", "the values are the last kv_lora_rank dims of the cache row, not the first", "", form="latent", change_form=_values_of_last_dims),
    Mistake("mla_key_weights_of_first_head", "every head uses w_uk of head 0", "", form="latent", change_form=_latent(w_uk=_key_weights_of_first_head)),
    Mistake("mla_value_weights_of_first_head", "every head uses w_uv of head 0", "", form="latent", change_form=_latent(w_uv=lambda p: np.broadcast_to(p.w_uv[:1], p.w_uv.shape))),
    Mistake("mla_value_weights_sliced_wrong", "w_uv is read as (v_head_dim, heads, rank)", "", form="latent", change_form=_latent(w_uv=lambda p: _reshaped(p.w_uv)),
            issues=("larql/larql #96", "deepseek-ai/DeepSeek-V3 #848")),
    Mistake("mla_key_weights_sliced_wrong", "w_uk is read as (nope, heads, rank)", "", form="latent", change_form=_latent(w_uk=lambda p: _reshaped(p.w_uk)),
            issues=("ROCm/rocm-libraries #9442",)),
    Mistake("rope_dropped", "query and key are not rotated", "", form="rope", change_form=_rope(lambda r: replace(r, on=False))),
    Mistake("rope_other_pairs", "the rotary pairs are those of the other layout (half against interleaved)", "layout=the other one", form="rope", change_form=_rope(_other_layout),
            issues=("huggingface/transformers #39687", "ggml-org/llama.cpp #22611", "jzhang38/TinyLlama #24")),
    Mistake("rope_layouts_mixed", "query and key are rotated in different layouts", "", form="rope", change_form=_rope(_keep, _other_layout)),
    Mistake("rope_query_only", "only the query is rotated", "", form="rope", change_form=_rope(_keep, lambda r: replace(r, on=False))),
    Mistake("rope_key_only", "only the key is rotated", "", form="rope", change_form=_rope(lambda r: replace(r, on=False), _keep)),
    Mistake("rope_query_one_late", "the query is rotated one position too far", "", form="rope", change_form=_rope(lambda r: replace(r, shift=r.shift + 1), _keep),
            issues=("fla-org/flash-linear-attention #766",)),
    Mistake("rope_query_one_early", "the query is rotated one position too little", "", form="rope", change_form=_rope(lambda r: replace(r, shift=r.shift - 1), _keep)),
    Mistake("rope_rows_from_zero", "query positions start at 0 although keys are cached before them", "positions = q_offset + arange(q_len)", form="rope",
            change_form=_rows_from_zero, issues=("pytorch/executorch #2010",)),
    Mistake("rope_single_angle", "all query rows are rotated by the angle of the first", "", form="rope", change_form=_rope(lambda r: replace(r, at_start=True), _keep),
            issues=("Dao-AILab/flash-attention flash_attn_with_kvcache docstring",)),
    Mistake("rope_query_backwards", "the query is rotated in the other direction", "", form="rope", change_form=_rope(lambda r: replace(r, direction=-r.direction), _keep)),
    Mistake("rope_twice", "the rotation is applied twice", "", form="rope", change_form=_twice),
    Mistake("rope_theta_500000", "the base of the rotation is 500000", "theta=500000", form="rope", change_form=_rope(lambda r: replace(r, theta=500000.0))),
    Mistake("rope_theta_10000", "the base of the rotation is 10000", "theta=10000", form="rope", change_form=_rope(lambda r: replace(r, theta=10000.0))),
    Mistake("rope_theta_1000000", "the base of the rotation is 1000000", "theta=1000000", form="rope", change_form=_rope(lambda r: replace(r, theta=1e6))),
    Mistake("rope_half_the_dims", "only half of the rotary dims are rotated", "rotary_dim / 2", form="rope",
            change_form=lambda p: _rope(lambda r: replace(r, rotary_dim=max((r.rotary_dim or p.dense.head_dim) // 4 * 2, 2)))(p)),
)  # fmt: skip


def _backwards(paged, b):
    """The used pages of a row in reverse order."""
    row = paged.block_table[b].copy()
    used = -(-int(paged.kv_lengths[b]) // paged.page_size)
    row[:used] = row[:used][::-1]
    return row
