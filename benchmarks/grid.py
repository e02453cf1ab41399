"""The shapes that are measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One attention call; with v_head_dim, the values are the first so many elements of the keys."""

    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    v_head_dim: int = 0
    causal: bool = False
    batch: int = 1

    @property
    def value_dim(self):
        return self.v_head_dim or self.head_dim

    @property
    def sizes(self):
        """Of query, key and value."""
        keys = self.batch, self.kv_heads, self.kv_len
        return (
            (self.batch, self.q_heads, self.q_len, self.head_dim),
            (*keys, self.head_dim),
            (*keys, self.value_dim),
        )

    @property
    def kind(self):
        return "decode" if self.q_len == 1 else "prefill"

    @property
    def flops(self):
        """Of the two products, over visible pairs."""
        pairs = self.q_len * (self.q_len + 1) // 2 if self.causal else self.q_len * self.kv_len
        return 2 * self.batch * self.q_heads * pairs * (self.head_dim + self.value_dim)

    @property
    def bytes(self):
        """Of keys and values in float32, each read once; values that are part of the keys not twice."""
        dims = self.head_dim + (0 if self.v_head_dim else self.value_dim)
        return 4 * self.batch * self.kv_heads * self.kv_len * dims

    def __str__(self):
        batch = f"{self.batch}x " if self.batch > 1 else ""
        dims = f"{self.head_dim}" + (f"/{self.v_head_dim}" if self.v_head_dim else "")
        length = f"{self.q_len}" if self.q_len == self.kv_len else f"{self.q_len} on {self.kv_len}"
        causal = ", causal" if self.causal else ""
        return f"{batch}{self.q_heads}/{self.kv_heads} heads, {length}, dim {dims}{causal}"


def prefill(heads, kv_heads, length, dim, causal=True, batch=1):
    return Shape(heads, kv_heads, length, length, dim, causal=causal, batch=batch)


# Those that README shows.
MAIN = [
    prefill(8, 8, 1024, 128, causal=False),
    prefill(8, 8, 1024, 128),
    prefill(8, 2, 1024, 128),
    prefill(4, 4, 4096, 64),
    Shape(32, 32, 1, 4096, 128),
    Shape(32, 8, 1, 4096, 128),
    Shape(32, 1, 1, 16384, 128),
    Shape(16, 1, 1, 4096, 576, 512),
    Shape(128, 1, 1, 4096, 576, 512),
]

GRID = list(
    dict.fromkeys(
        MAIN
        + [prefill(8, 8, length, dim) for dim in (64, 80, 96, 128, 256) for length in (128, 512, 1024)]
        + [prefill(4, 4, 2048, dim, causal=False) for dim in (64, 80, 96, 128, 256)]
        + [prefill(2, 2, length, 128) for length in (4096, 8192, 16384)]
        + [prefill(8, heads, 1024, 64) for heads in (8, 2, 1)]
        + [prefill(8, 8, 256, 64, batch=8)]
        + [Shape(8, 8, 64, 4096, 128)]
        + [
            Shape(32, heads, 1, length, 128, batch=batch)
            for heads in (32, 8, 4, 1)
            for length in (128, 1024, 4096)
            for batch in (1, 8)
        ]
    )
)
