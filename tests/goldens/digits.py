"""The same formulas in 40-digit arithmetic, one row at a time in plain loops: what the float64
goldens are measured against.
"""

import mpmath
import numpy as np

DIGITS = 40


def pair(x):
    """A 40-digit number as the unevaluated sum of two float64."""
    high = float(x)
    return (high, 0.0) if not np.isfinite(high) else (high, float(x - mpmath.mpf(high)))


def numbers(array):
    """Nested lists of exact mpf."""
    return [numbers(a) for a in array] if np.ndim(array) else mpmath.mpf(float(array))


def multiplied_out(latent, b, h):
    """Key (S, N + R) and value (S, E) of head h, exact to 40 digits, from the latent arrays."""
    c, rope = numbers(latent["kv_latent"][b]), numbers(latent["k_rope"][b])
    up_k, up_v = numbers(latent["w_uk"][h]), numbers(latent["w_uv"][h])
    key = [[mpmath.fdot(row, unit) for unit in up_k] + rope[j] for j, row in enumerate(c)]
    return key, [[mpmath.fdot(row, unit) for unit in up_v] for row in c]


def attention(p):
    """Output pair (2, B, H, T, E) and lse pair (2, B, H, T) of a DenseProblem."""
    batch, heads, q_len, kv_len = p.visible.shape
    v_dim = p.value.shape[-1]
    output, lse = np.zeros((2, batch, heads, q_len, v_dim)), np.zeros((2, batch, heads, q_len))
    with mpmath.workdps(DIGITS):
        scale = mpmath.mpf(p.scale)
        for b, h in np.ndindex(batch, heads):
            query = numbers(p.query[b, h].numpy())
            if p.latent is None:
                key, value = numbers(p.key[b, h].numpy()), numbers(p.value[b, h].numpy())
            else:
                key, value = multiplied_out(p.latent, b, h)
            columns = list(zip(*value)) if kv_len else [()] * v_dim
            for i in range(q_len):
                weights = [mpmath.mpf(0)] * kv_len
                total = mpmath.mpf(0)
                if p.sinks is not None:
                    total += mpmath.exp(mpmath.mpf(float(p.sinks[h])))
                for j in range(kv_len):
                    if p.visible[b, h, i, j]:
                        weights[j] = mpmath.exp(logit(p, scale, query[i], key[j], (b, h, i, j)))
                        total += weights[j]
                if total == 0:
                    lse[0, b, h, i] = -np.inf
                    continue
                lse[:, b, h, i] = pair(mpmath.log(total))
                for j in range(kv_len):
                    if p.keep is not None:
                        weights[j] = (
                            weights[j] / (1 - mpmath.mpf(p.rate)) if p.keep[b, h, i, j] else mpmath.mpf(0)
                        )
                for e in range(v_dim):
                    output[:, b, h, i, e] = pair(mpmath.fdot(weights, columns[e]) / total)
    return output, lse


def logit(p, scale, q, k, index):
    """One visible score; mpf has no overflow, so no maximum is subtracted."""
    x = scale * mpmath.fdot(q, k)
    if p.softcap is not None:
        x = p.softcap * mpmath.tanh(x / p.softcap)
    for term in p.terms:
        x += mpmath.mpf(float(term[index]))
    if p.slopes is not None:
        b, h, i, j = index
        x -= mpmath.mpf(float(p.slopes[b, h])) * abs(int(p.positions[b, i]) - j)
    return x


def merge(outputs, lses):
    """States stacked on axis 0 (n, ..., E), (n, ...) -> pairs, as attention."""
    output, lse = np.zeros((2, *outputs.shape[1:])), np.zeros((2, *lses.shape[1:]))
    with mpmath.workdps(DIGITS):
        for index in np.ndindex(lses.shape[1:]):
            parts = [mpmath.exp(mpmath.mpf(float(x))) for x in lses[(slice(None), *index)]]
            total = sum(parts)
            if total == 0:
                lse[(0, *index)] = -np.inf
                continue
            lse[(slice(None), *index)] = pair(mpmath.log(total))
            for e in range(outputs.shape[-1]):
                column = numbers(outputs[(slice(None), *index, e)])
                output[(slice(None), *index, e)] = pair(mpmath.fdot(parts, column) / total)
    return output, lse
