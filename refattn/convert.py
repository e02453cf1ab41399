"""Convert keys and values to smaller forms: truncated singular value decompositions of a cache.

The heads of a cache, side by side, are one matrix with a row per token. Its best approximation of rank r
(Eckart and Young 1936) is a narrow matrix of latents, one row of r numbers per token, times
up-projections that every token shares:

    joint   [K_1 .. K_K | V_1 .. V_K]  ~  latent (S, r) @ up (r, K * (D + E))     as in MLA, for both
    split   [K_1 .. K_K] ~ latent_k (S, r_k) @ up_k,  [V_1 .. V_K] ~ latent_v (S, r_v) @ up_v,  r_k + r_v = r

It pays once r * (S + K * (D + E)) < S * K * (D + E). Two differences to MLA: there the down-projection of
a token's hidden state is learned, so a new token is appended by itself, while a singular value
decomposition belongs to the S tokens it was made from; and there a rotary part of each key is kept apart.
"""

import math
from dataclasses import dataclass

import numpy as np

from refattn.calls.arrays import as_float_array
from refattn.calls.checks import checked_integer
from refattn.calls.dense import at_least_axes, require_head_dim, require_head_ratio
from refattn.calls.options import takes_options
from refattn.dense import attention_with_lse


@dataclass(frozen=True, eq=False)
class FactoredKeysValues:
    """Keys and values as latents times up-projections; made by `factor_keys_values`.

    Axes: S tokens, K key/value heads, D head_dim, E v_head_dim, R_k and R_v latent widths, ... any number
    of batch axes.

    Attributes
    ----------
    mode : {"joint", "split"}
    key_latent : ndarray, shape (..., S, R_k), float64
    value_latent : ndarray, shape (..., S, R_v), float64
        The very same array as `key_latent` in joint mode.
    w_uk : ndarray, shape (..., K, D, R_k), float64
        Up-projections named and shaped as in `refattn.latent_attention`: head h has key = key_latent @
        w_uk[h].T.
    w_uv : ndarray, shape (..., K, E, R_v), float64
    key_singular_values, value_singular_values : ndarray, shape (..., n), float64
        Of the whole matrices, largest first; the very same array in joint mode.
    head_axis : bool
        False if key and value came without one, as (S, D) and (S, E); K is 1 then.
    """

    mode: str
    key_latent: np.ndarray
    value_latent: np.ndarray
    w_uk: np.ndarray
    w_uv: np.ndarray
    key_singular_values: np.ndarray
    value_singular_values: np.ndarray
    head_axis: bool

    @property
    def rank(self):
        """Numbers stored per token: R in joint mode, R_k + R_v in split mode."""
        joint = self.mode == "joint"
        return self.key_latent.shape[-1] + (0 if joint else self.value_latent.shape[-1])

    @property
    def stored_size(self):
        """Numbers stored: latents and up-projections, of all batch entries."""
        latents = self.key_latent.size + (0 if self.mode == "joint" else self.value_latent.size)
        return latents + self.w_uk.size + self.w_uv.size

    @property
    def dense_size(self):
        """Numbers in the keys and values themselves."""
        *batch, length, _ = self.key_latent.shape
        num_kv_heads, head_dim, _ = self.w_uk.shape[-3:]
        return math.prod(batch) * length * num_kv_heads * (head_dim + self.w_uv.shape[-2])

    @property
    def pays_off(self):
        """Whether the factors hold fewer numbers than the keys and values: r (S + D) < S D for one
        matrix S x D.
        """
        return self.stored_size < self.dense_size

    @property
    def truncation_error(self):
        """Frobenius norm of what was cut off, keys and values together: the root of the sum of the squared
        dropped singular values.

        Returns
        -------
        float, or ndarray of the batch shape
        """
        tails = [self.key_singular_values[..., self.key_latent.shape[-1] :]]
        if self.mode == "split":
            tails.append(self.value_singular_values[..., self.value_latent.shape[-1] :])
        error = np.hypot.reduce(np.concatenate(tails, axis=-1), axis=-1)  # hypot: no overflow in the squares
        return float(error) if error.ndim == 0 else error

    def reconstruct(self):
        """Keys and values of the chosen rank, as dense arrays.

        Returns
        -------
        key : ndarray, shape (..., K, S, D), or (S, D) without a head axis, float64
        value : ndarray, shape (..., K, S, E), or (S, E)
        """
        key = self.key_latent[..., None, :, :] @ self.w_uk.swapaxes(-1, -2)
        value = self.value_latent[..., None, :, :] @ self.w_uv.swapaxes(-1, -2)
        return (key, value) if self.head_axis else (key[0], value[0])

    @takes_options
    def attention(self, query, **options):
        """`refattn.attention` over the factored keys and values, which are never rebuilt.

        The up-projection of the keys goes into the queries and that of the values onto the outputs (MLA's
        absorbed form, DeepSeek-V2 report, section 2.1.2), so the latents are one key/value head of width
        R for all query heads.

        Parameters
        ----------
        query : array_like, shape (..., H, T, D), floating point
            H a multiple of K; query head h reads key/value head h // (H // K).
        **options
            Those of `refattn.attention`. The default scale is 1 / sqrt(D), of the keys the latents stand
            for, not 1 / sqrt(R).

        Returns
        -------
        output : ndarray, shape (..., H, T, E), float64
            Equal to `refattn.attention(query, *self.reconstruct(), **options)` up to rounding.

        Notes
        -----
        Cost: H T S (R_k + R_v) multiply-adds instead of H T S (D + E), and H T (D R_k + E R_v) for the
        up-projections.
        """
        return self.attention_with_lse(query, **options)[0]

    @takes_options
    def attention_with_lse(self, query, **options):
        """`attention` and the log-sum-exp of its scores, shape (..., H, T)."""
        query = as_float_array(query, "query")
        at_least_axes(3, "(heads, length, dim)", query=query)
        *batch, num_kv_heads, head_dim, _ = self.w_uk.shape
        *query_batch, num_heads, q_len, width = query.shape
        if query_batch != batch:
            raise ValueError(
                "query must have the batch axes of the factored keys and values; got "
                f"query.shape={query.shape}, batch axes {tuple(batch)}."
            )
        require_head_ratio(num_heads, num_kv_heads)
        require_head_dim(width, head_dim)
        if options.get("scale") is None:
            options["scale"] = 1 / math.sqrt(head_dim)
        groups = (*batch, num_kv_heads, num_heads // num_kv_heads * q_len)
        # NaN and infinity in a query make that row NaN, as in refattn.attention
        with np.errstate(all="ignore"):
            absorbed = query.astype(np.float64).reshape(*groups, head_dim) @ self.w_uk
        latent_output, lse = attention_with_lse(
            absorbed.reshape(*batch, num_heads, q_len, self.key_latent.shape[-1]),
            self.key_latent[..., None, :, :],
            self.value_latent[..., None, :, :],
            **options,
        )
        with np.errstate(all="ignore"):
            output = latent_output.reshape(*groups, self.value_latent.shape[-1]) @ self.w_uv.swapaxes(-1, -2)
        return output.reshape(*batch, num_heads, q_len, self.w_uv.shape[-2]), lse


def factor_keys_values(key, value, rank, mode="joint"):
    """Factor keys and values into latents of `rank` numbers per token and up-projections, by truncated SVD.

    Parameters
    ----------
    key : array_like, shape (..., K, S, D) or (S, D), floating point and finite
    value : array_like, shape (..., K, S, E) or (S, E)
        The heads are factored together, sharing one latent as in MLA; batch axes apart. To factor each
        head by itself, make the heads a batch axis: `key[..., None, :, :]`.
    rank : int
        Numbers stored per token. From 1 to min(S, K (D + E)) in joint mode; from 2 to min(S, K D) +
        min(S, K E) in split mode. At the upper end nothing is lost, and usually nothing gained: see
        `FactoredKeysValues.pays_off`.
    mode : {"joint", "split"}
        "joint": one latent for keys and values. "split": one each, half the rank for values and the rest
        for keys, or as much as their own rank allows. At equal rank joint never has the larger error, for
        a split approximation is a joint one with zeros.

    Returns
    -------
    FactoredKeysValues

    Raises
    ------
    TypeError
        key or value not floating point, rank not an integer.
    ValueError
        Shapes that do not match, rank out of range, NaN or infinity in key or value, an unknown mode.

    Notes
    -----
    Cost: O(S W min(S, W)) with W = K (D + E), in float64.

    References
    ----------
    Eckart and Young 1936; DeepSeek-V2 report (arXiv 2405.04434), section 2.1.2; Ji et al. 2025 (arXiv
    2502.14837), section 3.2, factor weights so, joint and split, instead of a cache.

    Examples
    --------
    Keys and values that are both 3-dimensional behind the scenes need a joint rank of 3:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> hidden = rng.standard_normal((64, 3))
    >>> key, value = hidden @ rng.standard_normal((3, 16)), hidden @ rng.standard_normal((3, 16))
    >>> joint, split = (factor_keys_values(key, value, 3, mode) for mode in ("joint", "split"))
    >>> joint.stored_size, joint.dense_size, joint.truncation_error < 1e-12, split.truncation_error > 1
    (288, 2048, True, True)
    """
    key, value = as_float_array(key, "key"), as_float_array(value, "value")
    rank = checked_integer(rank, "rank")
    at_least_axes(2, "(length, dim)", key=key, value=value)
    if key.shape[:-1] != value.shape[:-1]:
        hint = (
            " The layout is (..., heads, length, dim)." if value.shape[-3:-1] == key.shape[-2:-4:-1] else ""
        )
        raise ValueError(
            f"key and value must have the same shape up to their last axis; got key.shape={key.shape}, "
            f"value.shape={value.shape}.{hint}"
        )
    head_axis = key.ndim > 2
    key_heads, value_heads = (array if head_axis else array[None] for array in (key, value))
    for name, array in (("key", key), ("value", value)):
        if 0 in array.shape[-3:]:
            raise ValueError(
                f"{name} must have at least one head, token and column to factor; got "
                f"{name}.shape={array.shape}."
            )
    if mode not in ("joint", "split"):
        raise ValueError(f"mode must be 'joint' or 'split'; got mode={mode!r}.")
    keys, values = _side_by_side(key_heads), _side_by_side(value_heads)  # (..., S, K * D), (..., S, K * E)
    rank_key, rank_value = _ranks(rank, mode, keys.shape[-2:], values.shape[-2:])
    for name, array in (("key", keys), ("value", values)):
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name} must be finite to be factored; got NaN or infinity. Cut a cache at its length "
                "first."
            )

    if mode == "joint":
        latent, singular_values, up = _truncated_svd(np.concatenate([keys, values], axis=-1), rank)
        key_latent = value_latent = latent
        key_singular_values = value_singular_values = singular_values
        up_key, up_value = np.split(up, [keys.shape[-1]], axis=-1)
    else:
        key_latent, key_singular_values, up_key = _truncated_svd(keys, rank_key)
        value_latent, value_singular_values, up_value = _truncated_svd(values, rank_value)
    return FactoredKeysValues(
        mode=mode,
        key_latent=key_latent,
        value_latent=value_latent,
        w_uk=_per_head(up_key, key_heads.shape),
        w_uv=_per_head(up_value, value_heads.shape),
        key_singular_values=key_singular_values,
        value_singular_values=value_singular_values,
        head_axis=head_axis,
    )


def _ranks(rank, mode, key_shape, value_shape):
    """Latent widths of keys and values; both the whole rank in joint mode."""
    if mode == "joint":
        least, most = 1, min(key_shape[0], key_shape[1] + value_shape[1])
    else:
        most_key, most_value = min(key_shape), min(value_shape)
        least, most = 2, most_key + most_value
    if not least <= rank <= most:
        raise ValueError(
            f"rank must be from {least} to {most} for mode={mode!r} and these shapes; got rank={rank}."
        )
    if mode == "joint":
        return rank, rank
    rank_value = max(min(rank // 2, most_value), rank - most_key)
    return rank - rank_value, rank_value


def _side_by_side(heads):
    """(..., K, S, D) -> (..., S, K * D) in float64."""
    *batch, num_heads, length, dim = heads.shape
    return np.moveaxis(heads, -3, -2).reshape(*batch, length, num_heads * dim).astype(np.float64)


def _per_head(up, heads_shape):
    """(..., R, K * D) -> (..., K, D, R), for heads of shape (..., K, S, D)."""
    *batch, num_heads, _, dim = heads_shape
    return np.moveaxis(up.reshape(*batch, up.shape[-2], num_heads, dim), -3, -1).copy()


def _truncated_svd(matrices, rank):
    """Latents (..., S, rank), all singular values (..., n), up-projections (..., rank, W) of matrices
    (..., S, W).
    """
    from scipy.linalg import svd  # here, so that importing refattn imports NumPy only

    *batch, length, width = matrices.shape
    latent = np.empty((*batch, length, rank))
    singular_values = np.empty((*batch, min(length, width)))
    up = np.empty((*batch, rank, width))
    for index in np.ndindex(*batch):
        left, singular_values[index], right = svd(matrices[index], full_matrices=False, check_finite=False)
        latent[index] = left[:, :rank] * singular_values[index][:rank]
        up[index] = right[:rank]
    return latent, singular_values, up
