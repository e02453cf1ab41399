"""Time refattn.attention against attention written plainly in NumPy with the whole score matrix in memory.

The plain version is the one everybody writes: float64, scores of all heads at once, softmax in place. It
rounds every score, so it is less exact, and does two matrix products where refattn does six, or two in
blocks with precision="float64"; results are compared before anything is timed. They take turns (A B C A B C
...), so that a busy machine slows all.

    python benchmarks/reference.py                      8 heads, 1024 rows and keys, 64 wide, full and causal
    python benchmarks/reference.py --heads 32 --length 2048 --dim 128 --rounds 3
"""

import argparse
import functools
import time

import numpy as np

import refattn


def plain_attention(query, key, value, causal):
    """softmax(q k^T / sqrt(d)) v on whole matrices; query (H, T, D), key (H, S, D)."""
    scores = query @ key.swapaxes(-1, -2)
    scores *= 1 / np.sqrt(query.shape[-1])
    if causal:
        rows, keys = scores.shape[-2:]
        scores[:, np.arange(keys) > np.arange(rows)[:, None] + keys - rows] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores @ value


def take_turns(functions, rounds):
    """Seconds of each function in each round."""
    seconds = [[] for _ in functions]
    for _ in range(rounds):
        for function, taken in zip(functions, seconds):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024, help="query rows and keys")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    shape = arguments.heads, arguments.length, arguments.dim
    query, key, value = np.random.default_rng(0).normal(size=(3, *shape))
    print(
        f"{shape[0]} heads, {shape[1]} rows and keys, {shape[2]} wide, float64; seconds are medians of "
        f"{arguments.rounds} rounds"
    )
    for causal in (False, True):

        def ours(precision, causal=causal):
            return refattn.attention(query, key, value, causal=causal, precision=precision)

        def plain(causal=causal):
            return plain_attention(query, key, value, causal)

        exact, blocks = functools.partial(ours, "exact"), functools.partial(ours, "float64")
        apart = max(np.abs(exact() - other()).max() for other in (plain, blocks))
        # plain float64: scores off by about dim * 2^-53 * |score|, outputs by that times |value|
        if not apart < 1e-12:
            raise SystemExit(f"results differ by {apart}")
        taken = np.array(take_turns((plain, exact, blocks), arguments.rounds))
        times, ratios = np.median(taken, axis=1), np.median(taken / taken[0], axis=1)
        print(
            f"{'causal' if causal else 'full':>7}: plain NumPy {times[0]:8.3f} s   exact {times[1]:8.3f} s, "
            f"{ratios[1]:5.2f} of it   float64 {times[2]:8.3f} s, {ratios[2]:5.2f} of it   apart {apart:.1e}"
        )


if __name__ == "__main__":
    main()
