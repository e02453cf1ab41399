"""Multi-head Latent Attention: keys and values as latents that all heads share, and the
up-projections of each head.
"""

from dataclasses import dataclass

import numpy as np

from refattn.calls.dense import Problem, at_least_axes, exactly_axes, floating, require_memory
from refattn.calls.form import Checked, Form
from refattn.calls.options import Options, Sizes, checked_options


@dataclass(frozen=True, eq=False)
class LatentProblem(Options, Checked):
    """A checked call of MLA."""

    q_nope: np.ndarray  # (*batch, H, T, N)
    q_rope: np.ndarray  # (*batch, H, T, R)
    kv_latent: np.ndarray  # (*batch, S, C)
    k_rope: np.ndarray  # (*batch, S, R)
    w_uk: np.ndarray  # (H, N, C)
    w_uv: np.ndarray  # (H, E, C)
    implementation: str  # "absorb" or "expand"

    @property
    def form(self):
        return LATENT

    @property
    def largest_group(self):
        rank, rope, kv_len = (
            self.kv_latent.shape[-1],
            self.k_rope.shape[-1],
            int(self.kv_lengths.max(initial=0)),
        )
        if self.implementation == "absorb":
            return self.q_nope.shape[-3], kv_len, rank + rope, rank
        return 1, kv_len, self.q_nope.shape[-1] + rope, self.w_uv.shape[1]

    @property
    def output_shape(self):
        return (*self.q_nope.shape[:-1], self.w_uv.shape[1])

    @property
    def input_dtype(self):
        return self.q_nope.dtype

    def outline(self, n):
        batch, kv_len = self.kv_latent.shape[:-2], self.kv_latent.shape[-2]
        num_heads, q_len, nope = self.q_nope.shape[-3:]
        width = nope + self.k_rope.shape[-1]
        shapes = {"query": (q_len, width), "key": (kv_len, width), "value": (kv_len, self.w_uv.shape[1])}
        arrays = {
            name: np.broadcast_to(np.float64(0), (*batch, num_heads, *shape))
            for name, shape in shapes.items()
        }
        return Problem(**arrays, **self.options())

    def part(self, n=0):
        """Multi-Head Attention with keys and values of every head made explicit, in float64."""
        latent = np.asarray(self.kv_latent, np.float64)[..., None, :, :]
        rope = np.asarray(self.k_rope, np.float64)[..., None, :, :]
        k_nope = latent @ np.swapaxes(np.asarray(self.w_uk, np.float64), -1, -2)  # [..., S, C] @ [H, C, N]
        k_rope = np.broadcast_to(rope, k_nope.shape[:-1] + rope.shape[-1:])
        return Problem(
            query=np.concatenate([self.q_nope, self.q_rope], axis=-1, dtype=np.float64),
            key=np.concatenate([k_nope, k_rope], axis=-1),
            value=latent @ np.swapaxes(np.asarray(self.w_uv, np.float64), -1, -2),  # [..., S, C] @ [H, C, E]
            **self.options(),
        )


AXES = {
    "q_rope": "(..., heads, length, qk_rope_head_dim)",
    "kv_latent": "(..., length, kv_lora_rank)",
    "k_rope": "(..., length, qk_rope_head_dim)",
    "w_uk": "(heads, qk_nope_head_dim, kv_lora_rank)",
    "w_uv": "(heads, v_head_dim, kv_lora_rank)",
}


def _hint(name, shape, expected):
    """What an array of the wrong shape may be, as a sentence; empty where nothing fits."""
    if name in ("kv_latent", "k_rope"):
        return " Keys of MLA have no head axis: one latent and one k_rope serve all heads."
    if (name == "w_uv" and (shape[0], shape[1]) == (expected[0], expected[2])) or (
        name == "w_uk" and shape == (expected[0], expected[2], expected[1])
    ):
        return " It fits with its last two axes swapped."
    return ""


def latent_problem(q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv, *, form="absorb", **options):
    """Check the arguments of `refattn.latent_attention`."""
    q_nope, q_rope, kv_latent, k_rope, w_uk, w_uv = floating(
        q_nope=q_nope, q_rope=q_rope, kv_latent=kv_latent, k_rope=k_rope, w_uk=w_uk, w_uv=w_uv
    )
    if not isinstance(form, str):
        raise TypeError(f"form must be 'absorb' or 'expand'; got form={form!r}.")
    if form not in ("absorb", "expand"):
        raise ValueError(f"form must be 'absorb' or 'expand'; got form={form!r}.")
    at_least_axes(3, "(heads, length, dim)", q_nope=q_nope, q_rope=q_rope)
    at_least_axes(2, "(length, dim)", kv_latent=kv_latent, k_rope=k_rope)
    exactly_axes(3, AXES["w_uk"], w_uk=w_uk)
    exactly_axes(3, AXES["w_uv"], w_uv=w_uv)
    *batch_shape, num_heads, q_len, nope = q_nope.shape
    batch_shape = tuple(batch_shape)
    kv_len, rank = kv_latent.shape[-2:]
    rope = k_rope.shape[-1]
    for name, array, expected in (
        ("q_rope", q_rope, (*batch_shape, num_heads, q_len, rope)),
        ("kv_latent", kv_latent, (*batch_shape, kv_len, rank)),
        ("k_rope", k_rope, (*batch_shape, kv_len, rope)),
        ("w_uk", w_uk, (num_heads, nope, rank)),
        ("w_uv", w_uv, (num_heads, w_uv.shape[1], rank)),
    ):
        if array.shape != expected:
            any_width = f"({num_heads}, any, {rank})" if name == "w_uv" else expected
            raise ValueError(
                f"{name} must have shape {AXES[name]}={any_width}; got {name}.shape={array.shape}."
                f"{_hint(name, array.shape, expected)}"
            )
    if num_heads < 1 or nope + rope < 1 or rank < 1:
        raise ValueError(
            "num_heads, qk_nope_head_dim + qk_rope_head_dim and kv_lora_rank must be at least 1; "
            f"got q_nope.shape={q_nope.shape}, q_rope.shape={q_rope.shape}, "
            f"kv_latent.shape={kv_latent.shape}."
        )
    require_memory(batch_shape, num_heads, q_len, w_uv.shape[1])
    checked = checked_options(Sizes(batch_shape, num_heads, q_len, kv_len, nope + rope), **options)
    return LatentProblem(
        q_nope=q_nope,
        q_rope=q_rope,
        kv_latent=kv_latent,
        k_rope=k_rope,
        w_uk=w_uk,
        w_uv=w_uv,
        implementation=form,
        **checked,
    )


LATENT = Form(
    name="latent",
    function="latent_attention",
    arrays={
        "q_nope": "batch head row nope_dim",
        "q_rope": "batch head row rope_dim",
        "kv_latent": "batch key latent_dim",
        "k_rope": "batch key rope_dim",
        "w_uk": "head nope_dim latent_dim",
        "w_uv": "head v_head_dim latent_dim",
    },
    results={"output": "batch head row v_head_dim", "lse": "batch head row"},
    check=latent_problem,
    choices={"form": ("absorb", "expand")},
    projects=True,
)
