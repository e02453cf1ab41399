"""Do two commits behave alike? The same calls on both, every result compared, every difference listed.

    python tests/compare_commits.py COMMIT [COMMIT2] [--quick] [--only KIND]

COMMIT2 is the working tree by default. Both packages of each tree are copied to a temporary folder; one
process a tree, with one thread, makes the calls of `all_calls` and writes down what came of them: outputs
and lse of both packages over all forms and options, bounds, verdicts, findings of `diagnose` in their
order, tests of `check_kernel`, and messages of bad calls.

Numbers are equal bit for bit or within `ULPS`, as sums in another order are. A text may differ by the words
in `WORDS`. What else may differ stands in `ACCEPTED`, with its reason. The exit status is 1 if anything else
differs.

The calls use only names in `__all__` of refattn and refattn.oracle, the functions of cpu_kernels, and
public arguments, so that both trees know them however their insides are moved about. No call has a limit
in seconds that it could reach. Two trees take about five minutes of one core, six where the kernels
differ, which are compiled for four dtypes; --quick takes about one.
"""

import argparse
import base64
import fnmatch
import functools
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("refattn", "cpu_kernels")
POOLS = ("OPENBLAS", "OMP", "MKL", "NUMBA")
ONE_THREAD = {f"{pool}_NUM_THREADS": "1" for pool in POOLS} | {"VECLIB_MAXIMUM_THREADS": "1"}
QUICK = 10  # --quick makes every tenth call

SHOWN = 4  # fields that are listed of a call

ULPS = 2  # a sum in another order

# word of the first tree -> (word of the second, reason)
WORDS: dict[str, tuple[str, str]] = {
    "refattn.oracle.suites.": ("refattn.oracle.inputs.suites.", "the file stands in a folder"),
    "refattn.oracle.block_local.": ("refattn.oracle.inputs.local.", "the file stands in a folder"),
}

# pattern of "call | field", as in fnmatch; largest difference in ulp, or None for any; reason
ACCEPTED: tuple[tuple[str, float | None, str], ...] = (
    ("mutation_score: * | *tile_lost_at_random*", None, "a race loses another tile in every run"),
    ("diagnose, *: local, * | result.*", None, "its mistakes come first, as those of other forms do"),
)


# ---- inputs of each form ----------------------------------------------------------------------------------


class Form(NamedTuple):
    """A call of one form of attention before its options."""

    function: str
    arrays: dict
    options: dict  # those the form cannot do without
    scores: tuple  # (*batch, heads, rows, keys): what bias and masks broadcast to
    lengths: np.ndarray  # most keys of each batch entry
    without: tuple = ()  # options it does not take


HEADS = ((4, 2), (3, 1), (2, 2), (6, 2))  # query heads, key/value heads
DTYPES = ("float64", "float32", "float16", "bfloat16")


def dtype_of(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def dense(draw, heads, kv_heads):
    arrays = {
        "query": draw(2, heads, 5, 8),
        "key": draw(2, kv_heads, 9, 8),
        "value": draw(2, kv_heads, 9, 6),
    }
    return Form("attention", arrays, {}, (2, heads, 5, 9), np.array([9, 9]))


def packed(draw, heads, kv_heads):
    """Three sequences, one without rows and one without keys among them."""
    arrays = {"query": draw(heads, 7, 8), "key": draw(kv_heads, 11, 8), "value": draw(kv_heads, 11, 6)}
    cuts = {"cu_q": np.array([0, 4, 4, 7]), "cu_kv": np.array([0, 7, 11, 11])}
    return Form("packed_attention", arrays, cuts, (heads, 7, 11), np.array([7, 4, 0]))


def paged(draw, heads, kv_heads):
    """Pages in any order; slots and pages that no length reaches hold NaN."""
    arrays = {
        "query": draw(2, heads, 3, 8),
        "key_pages": draw(7, kv_heads, 4, 8),
        "value_pages": draw(7, kv_heads, 4, 6),
    }
    for pages in (arrays["key_pages"], arrays["value_pages"]):
        pages[0], pages[3, :, 2:] = np.nan, np.nan
    table = {"block_table": np.array([[5, 1, 3], [6, 2, 0]]), "kv_lengths": np.array([10, 7])}
    return Form("paged_attention", arrays, table, (2, heads, 3, 12), np.array([10, 7]))


def latent(form, draw, heads, kv_heads):
    del kv_heads  # all heads share one latent
    shapes = {
        "q_nope": (2, heads, 4, 5),
        "q_rope": (2, heads, 4, 3),
        "kv_latent": (2, 9, 10),
        "k_rope": (2, 9, 3),
        "w_uk": (heads, 5, 10),
        "w_uv": (heads, 6, 10),
    }
    arrays = {name: draw(*shape) for name, shape in shapes.items()}
    return Form("latent_attention", arrays, {"form": form}, (2, heads, 4, 9), np.array([9, 9]))


def block_local(draw, heads, kv_heads):
    arrays = {
        "query": draw(2, heads, 7, 8),
        "key": draw(2, kv_heads, 7, 8),
        "value": draw(2, kv_heads, 7, 6),
    }
    block, lengths = {"block_size": 3}, np.array([7, 7])
    return Form("block_local_attention", arrays, block, (2, heads, 7, 7), lengths, ("q_offset",))


FORMS = {
    "dense": dense,
    "packed": packed,
    "paged": paged,
    "absorb": functools.partial(latent, "absorb"),
    "expand": functools.partial(latent, "expand"),
    "local": block_local,
}

# name -> (generator, form, dtype) to keyword arguments
OPTIONS = {
    "bias": lambda rng, form, dtype: {"bias": rng.normal(size=form.scores).astype(dtype)},
    "bias with -inf": lambda rng, form, dtype: {
        "bias": np.where(rng.random(form.scores[-2:]) < 0.3, -np.inf, 0.5).astype(dtype)
    },
    "mask": lambda rng, form, dtype: {"mask": rng.random(form.scores) < 0.7},
    "mask of rows": lambda rng, form, dtype: {"mask": rng.random((form.scores[-2], 1)) < 0.5},
    "scale": lambda rng, form, dtype: {"scale": -0.6},
    "causal": lambda rng, form, dtype: {"causal": True},
    "window": lambda rng, form, dtype: {"window": (2, 1)},
    "left window": lambda rng, form, dtype: {"window": (3, None)},
    "softcap": lambda rng, form, dtype: {"softcap": 0.8},
    "alibi": lambda rng, form, dtype: {"alibi_slopes": 2.0 ** -np.arange(1, form.scores[-3] + 1)},
    "sinks": lambda rng, form, dtype: {"sinks": rng.normal(size=form.scores[-3])},
    "extreme sinks": lambda rng, form, dtype: {"sinks": np.resize([800.0, -np.inf, -1e5], form.scores[-3])},
    "lengths": lambda rng, form, dtype: {
        "kv_lengths": np.maximum(form.lengths - np.arange(2, 2 + len(form.lengths)) * 2, 0)
    },
    "offset": lambda rng, form, dtype: {"q_offset": np.arange(len(form.lengths)) * 4 - 3},
    "dropout": lambda rng, form, dtype: {
        "dropout_mask": rng.random(form.scores) < 0.7,
        "dropout_rate": 0.25,
    },
    "hidden NaN": None,  # see `hide_nan`
}


def hide_nan(form, options):
    """Key 1 is hidden from all rows and holds NaN and infinity; pages have them beyond the lengths."""
    for name, array in form.arrays.items():
        if name in ("key", "kv_latent", "k_rope"):
            array[..., 1, :] = np.nan
        elif name == "value":
            array[..., 1, :] = np.inf
    return {"mask": options.get("mask", True) & (np.arange(form.scores[-1]) != 1)}


def build(form_name, option_names, dtype, heads):
    """The form and all its keyword arguments; None where it does not take the options, or not together."""
    rng = np.random.default_rng(zlib.crc32(" ".join([form_name, *option_names]).encode()))
    kind = dtype_of(dtype)
    form = FORMS[form_name](lambda *shape: rng.normal(size=shape).astype(kind), *heads)
    options, taken = {}, set()
    for name in option_names:
        more = hide_nan(form, options) if name == "hidden NaN" else OPTIONS[name](rng, form, kind)
        if (taken & {*more} and name != "hidden NaN") or {*more} & {*form.without}:
            return None
        taken |= {*more}
        options |= more
    return form, form.options | options


def cases(form_names=tuple(FORMS), pairs=True):
    """(words, form, options, dtype): no option, each alone, each two; dtypes and head counts take turns."""
    turn = 0
    for form_name in form_names:
        groups = [(), *((name,) for name in OPTIONS), *(combinations(OPTIONS, 2) if pairs else ())]
        for names in groups:
            dtype, heads = DTYPES[turn % 4], HEADS[turn // 4 % 4]
            turn += 1
            built = build(form_name, names, dtype, heads)
            if built is not None:
                alone = " and ".join(names) or "plain"
                words = f"{form_name}, {alone}, {dtype}, {heads[0]} on {heads[1]} heads"
                yield words, *built, dtype


# ---- the calls --------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """`run()` gives a result of any nesting; `arguments` says in words what it was called with."""

    name: str
    run: Callable
    arguments: str = ""


def described(arrays, options):
    """Arguments in words: arrays by shape and dtype."""

    def show(x):
        return f"{x.shape} {x.dtype}" if isinstance(x, np.ndarray) else repr(x)

    return ", ".join(f"{name}={show(value)}" for name, value in {**arrays, **options}.items())


def attention_calls():
    """Outputs and lse of both packages over all forms, options alone and in pairs."""
    import cpu_kernels
    import refattn

    for package in (refattn, cpu_kernels):
        for words, form, options, _ in cases():
            function = getattr(package, f"{form.function}_with_lse")
            run = functools.partial(function, *form.arrays.values(), **options)
            yield Call(f"{package.__name__}: {words}", run, described(form.arrays, options))
        for words, form, options, dtype in cases(pairs=False):
            if dtype in ("float64", "float32"):
                name = f"{package.__name__} output alone: {words}"
                run = functools.partial(getattr(package, form.function), *form.arrays.values(), **options)
                yield Call(name, run, described(form.arrays, options))
        rng = np.random.default_rng(5)
        for level in (1.0, 1e4, np.inf):
            outputs, lses = rng.normal(size=(3, 2, 5, 6)), rng.normal(size=(3, 2, 5)) * min(level, 2)
            lses[0] += 0 if np.isinf(level) else level
            lses[rng.random(lses.shape) < 0.3 * np.isinf(level)] = -np.inf
            outputs[np.isinf(lses)] = 0
            run = functools.partial(package.merge_states, outputs, lses)
            yield Call(
                f"{package.__name__}: merge, levels up to {level}",
                run,
                described({"outputs": outputs, "lses": lses}, {}),
            )
    for words, form, options, _ in cases(["dense"]):
        steps = functools.partial(refattn.attention_steps, *form.arrays.values(), **options)
        yield Call(f"steps: {words}", lambda steps=steps: steps()._asdict(), described(form.arrays, options))


WRONG_OPTIONS = {"q_offset": 0, "scale": 0.2, "softcap": 0.5, "window": (1, 1), "causal": True}


def wrong_results(form, options, exact):
    """(words, output) of kernels with a mistake; those that need no option mostly in dense attention."""
    output = exact(**options)
    for name in options:
        if name not in form.options and name not in ("dropout_mask", "dropout_rate"):
            yield f"{name} ignored", exact(**{key: value for key, value in options.items() if key != name})
    if "dropout_rate" in options:
        yield "dropout not rescaled", exact(**options) * (1 - options["dropout_rate"])
    if not {*options} - {*form.options}:
        yield "heads rolled", np.roll(output, 1, axis=-3)
        yield "noise", output + 1e-2 * np.sin(np.arange(output.size)).reshape(output.shape)
        yield "NaN", np.full_like(output, np.nan)
    if form.function == "attention" and not options:
        for name, value in WRONG_OPTIONS.items():
            yield f"{name}={value}", exact(**{name: value})
        yield "rows rolled", np.roll(output, 1, axis=-2)
        yield "rows and heads swapped", np.ascontiguousarray(np.swapaxes(output, -3, -2))
        yield "one element off", output + 0.1 * (np.arange(output.size) == 17).reshape(output.shape)
        yield "twice as large", 2 * output
        yield "zeros", np.zeros_like(output)


def found(diagnosis):
    """What `diagnose` found: keys in order apart from words and numbers; not the seconds it took."""
    plain = diagnosis.to_dict() if hasattr(diagnosis, "to_dict") else diagnosis.to_json()  # of older commits
    findings = plain.pop("findings")
    keys = [[finding["id"], *finding["same_as"]] for finding in findings]
    return {"keys": keys, "words": str(diagnosis), "findings": findings} | plain


def judged_calls():
    """Bounds, verdicts and findings: right results, rounded ones, and wrong ones."""
    import refattn
    from refattn import oracle

    for words, form, options, dtype in cases(pairs=False):
        arguments = described(form.arrays, options)
        arrays, kind = tuple(form.arrays.values()), dtype_of(dtype)
        whole = functools.partial(getattr(refattn, f"{form.function}_with_lse"), *arrays)
        exact = functools.partial(getattr(refattn, form.function), *arrays)
        judge = functools.partial(oracle.check, function=form.function, **options)
        bound = functools.partial(oracle.error_bound, *arrays, function=form.function, **options)
        yield Call(f"bound: {words}", lambda bound=bound: without_spec(bound()), arguments)
        eager = functools.partial(bound, spec=f"eager {dtype}")
        yield Call(f"bound, eager: {words}", lambda bound=eager: without_spec(bound()), arguments)

        def right(whole=whole, judge=judge, arrays=arrays, options=options, kind=kind):
            output, lse = whole(**options)
            return judge(output.astype(kind), *arrays, lse=lse.astype(np.float32)).to_dict()

        def rounded(judge=judge, arrays=arrays, options=options, form=form, dtype=dtype):
            output, lse = oracle.emulate(*arrays, spec=dtype, function=form.function, **options)
            return {
                "output": output,
                "lse": lse,
                "report": judge(output, *arrays, lse=lse, spec=dtype).to_dict(),
            }

        yield Call(f"check, right: {words}", right, arguments)
        yield Call(f"check, emulated: {words}", rounded, arguments)
        with np.errstate(all="ignore"):
            wrong = [
                (mistake, output.astype(kind)) for mistake, output in wrong_results(form, options, exact)
            ]
        for mistake, output in wrong:
            if output.shape == exact(**options).shape:
                yield Call(
                    f"check, {mistake}: {words}",
                    lambda judge=judge, output=output, arrays=arrays: judge(output, *arrays).to_dict(),
                    arguments,
                )
            diagnose = functools.partial(oracle.diagnose, output, *arrays, pairs=False, **options)
            yield Call(
                f"diagnose, {mistake}: {words}", lambda diagnose=diagnose: found(diagnose()), arguments
            )


def without_spec(bound):
    return {name: value for name, value in vars(bound).items() if name != "spec"}


def pair_calls():
    """Two mistakes at once, searched to the end of the catalogue."""
    import refattn
    from refattn import oracle

    form, _ = build("dense", (), "float64", (4, 2))
    arrays = tuple(form.arrays.values())
    for right, wrong in (
        ({"causal": True}, {"causal": True, "q_offset": 0, "scale": 1.0}),
        ({"window": (2, 0), "softcap": 1.0}, {"window": (3, 0)}),
    ):
        output = refattn.attention(*arrays, **wrong)
        run = functools.partial(oracle.diagnose, output, *arrays, seconds=1e9, **right)
        yield Call(
            f"diagnose, two mistakes: {wrong}", lambda run=run: found(run()), described(form.arrays, right)
        )


def kernel_check_calls():
    """`check_kernel` on a right kernel and a wrong one; the mutants that a rule misses."""
    import refattn
    from refattn import oracle

    def top_left(query, key, value, **options):
        return refattn.attention_with_lse(query, key, value, **({"q_offset": 0} | options))

    def tests(kernel, only):
        report = oracle.check_kernel(kernel, spec="float64", only=only, diagnose=False, progress=False)
        return report.to_dict()  # without diagnoses, which stop after some seconds here

    for words, kernel in (("right", refattn.attention_with_lse), ("top-left", top_left)):
        for only in ("normal causal", "identities", "exact"):
            yield Call(f"check_kernel, {words}: {only}", functools.partial(tests, kernel, only))
    for rule in ("numpy.allclose", "torch.testing"):
        inputs = [oracle.attention_inputs("normal", names) for names in (("causal",), ("lengths", "sinks"))]
        yield Call(
            f"mutation_score: {rule}",
            lambda rule=rule, inputs=inputs: vars(oracle.mutation_score(rule, inputs)),
        )


def word_calls():
    """Dialects, specs and the inputs that the oracle makes."""
    from refattn import oracle

    form, _ = build("dense", (), "float32", (4, 2))
    arrays = tuple(form.arrays.values())
    for name in sorted(oracle.DIALECTS):
        yield Call(
            f"dialects: torch and {name}", functools.partial(oracle.explain_difference, "torch", name)
        )
        for options in (
            {"causal": True},
            {"window": (2, 0)},
            {"softcap": 2.0},
            {"kv_lengths": np.array([5, 9])},
        ):
            call = functools.partial(oracle.from_ours, name, *arrays, **options)
            yield Call(
                f"dialects: call of {name} with {', '.join(options)}", call, described(form.arrays, options)
            )
    for make in ("flash", "eager", "cpu_kernels"):
        for dtype in DTYPES:

            def run(make=make, dtype=dtype):
                return getattr(oracle.KernelSpec, make)(dtype).to_dict()

            yield Call(f"spec: {make} {dtype}", run)
    for words, suite in (
        ("adversarial", oracle.adversarial_inputs),
        ("exact", oracle.exact_cases),
        ("default", oracle.default_suite),
    ):
        yield Call(f"inputs: {words}", lambda suite=suite: [fingerprint(inputs) for inputs in suite()])


def fingerprint(inputs):
    """Name, options and digest of the arrays of generated inputs: too many to keep."""
    digest = hashlib.sha256()
    for array in (*inputs.arrays, *(x for x in inputs.options.values() if isinstance(x, np.ndarray))):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"{inputs.function} {inputs.name} {sorted(inputs.options)} {digest.hexdigest()}"


BAD_OPTIONS = (
    {"bias": np.zeros((2, 3, 4))},
    {"bias": np.zeros(2, dtype=np.int64)},
    {"mask": np.ones((77, 77), bool)},
    {"mask": 1.0},
    {"scale": "1"},
    {"scale": np.inf},
    {"causal": 1},
    {"window": 3},
    {"window": (-1, 0)},
    {"softcap": 0.0},
    {"softcap": np.nan},
    {"alibi_slopes": np.ones(77)},
    {"sinks": np.full(77, 1.0)},
    {"kv_lengths": 99},
    {"kv_lengths": -1},
    {"q_offset": 1.5},
    {"q_offset": 2**60},
    {"dropout_rate": 0.5},
    {"dropout_mask": True},
    {"dropout_mask": True, "dropout_rate": 1.0},
    {"unknown": 1},
)


def bad_calls():
    """Calls that must fail, by their message."""
    import cpu_kernels
    import refattn
    from refattn import oracle

    for form_name in FORMS:
        form, options = build(form_name, (), "float32", (4, 2))
        calls = [(form.arrays, options | bad) for bad in BAD_OPTIONS]
        for name, array in form.arrays.items():
            shorter = array[..., :-1, :] if name.startswith("value") else array[..., :-1]
            changed = (shorter, array[0], np.zeros_like(array, int))
            calls += [(form.arrays | {name: bad}, options) for bad in changed]
        for package in (refattn, cpu_kernels):
            function = getattr(package, f"{form.function}_with_lse")
            for n, (arrays, bad) in enumerate(calls):
                run = functools.partial(function, *arrays.values(), **bad)
                yield Call(f"bad call of {package.__name__}: {form_name} {n}", run, described(arrays, bad))
    form, _ = build("dense", (), "float32", (4, 2))
    query, key, value = form.arrays.values()
    for name, call in {
        "check, shape": lambda: oracle.check(query[..., :3], query, key, value).to_dict(),
        "check, function": lambda: oracle.check(query, query, key, value, function="attend"),
        "check, spec": lambda: oracle.check(query, query, key, value, spec="float31"),
        "bound, kind": lambda: oracle.error_bound(query, key, value, kind="soft"),
        "diagnose, size": lambda: oracle.diagnose(query[0, 0, 0, :7], query, key, value),
        "check_kernel, only": lambda: oracle.check_kernel(refattn.attention_with_lse, only="no such test"),
        "check_kernel, level": lambda: oracle.check_kernel(refattn.attention_with_lse, level="slow"),
        "dialect": lambda: oracle.dialect("tensorflow"),
        "inputs": lambda: oracle.attention_inputs("no such family"),
    }.items():
        yield Call(f"bad call of refattn.oracle: {name}", call)


GENERATORS = {
    "attention": attention_calls,
    "judged": judged_calls,
    "pairs": pair_calls,
    "check_kernel": kernel_check_calls,
    "words": word_calls,
    "bad": bad_calls,
}


def all_calls(quick=False, only=None):
    """Every call, in one order; quick: every tenth, and kernels of one dtype, for each is compiled apart."""
    generators = GENERATORS.values() if only is None else [GENERATORS[only]]
    calls = [call for generator in generators for call in generator()]
    if len({call.name for call in calls}) < len(calls):
        raise ValueError("two calls have one name")
    if quick:
        calls = [
            call for call in calls if not call.name.startswith("cpu_kernels") or "float32" in call.name
        ][::QUICK]
    return calls


# ---- one tree: results written down -----------------------------------------------------------------------


def plain(value):
    """Any result as what JSON holds, without times: an array as its bytes, dtype and shape."""
    if isinstance(value, np.generic):
        value = (
            value.item() if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8 else np.asarray(value)
        )
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "data": data}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def result_of(call):
    """What a call returned or raised, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = {"result": plain(call.run())}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
    return result | ({"warnings": sorted({str(warning.message) for warning in caught})} if caught else {})


def write_results(tree, path, quick, only):
    """Runs in a process of its own, whose packages must be those of the tree."""
    for name in PACKAGES:
        module = __import__(name)
        if not Path(module.__file__).is_relative_to(tree):
            raise SystemExit(f"{name} was imported from {module.__file__}, not from {tree}")
    results = {call.name: {"arguments": call.arguments} | result_of(call) for call in all_calls(quick, only)}
    Path(path).write_text(json.dumps(results))


# ---- two trees: results compared --------------------------------------------------------------------------


class Difference(NamedTuple):
    """One field of one call that differs."""

    call: str
    arguments: str
    field: str
    first: str
    second: str
    ulps: float  # infinite where it is not about numbers
    reason: str  # "" where none is known

    def __str__(self):
        apart = f", {self.ulps:g} ulp" if np.isfinite(self.ulps) else ""
        lines = [f"  {self.field}{apart}: {self.reason or 'NO REASON KNOWN'}"]
        return "\n".join([*lines, f"    first:  {self.first}", f"    second: {self.second}"])


def ordered(array):
    """Floating-point numbers as unsigned integers in the same order, neighbours one apart."""
    bits = array.view(f"u{array.dtype.itemsize}")
    sign = bits.dtype.type(1 << 8 * array.dtype.itemsize - 1)
    return np.where(bits & sign, ~bits, bits | sign)


def distances(first, second):
    """How many ulp apart the elements are; infinite where NaN or infinity stands on one side only."""
    if first.dtype.kind in "biu":
        return np.where(first == second, 0.0, np.inf)
    a, b = ordered(first), ordered(second)
    apart = (np.maximum(a, b) - np.minimum(a, b)).astype(np.float64)
    a, b = first.astype(np.float64), second.astype(np.float64)
    apart = np.where((np.isfinite(a) & np.isfinite(b)) | (a == b), apart, np.inf)
    return np.where(np.isnan(a) & np.isnan(b), 0.0, apart)


def as_array(record):
    return np.frombuffer(base64.b64decode(record["data"]), dtype=dtype_of(record["dtype"])).reshape(
        record["shape"]
    )


def is_array(value):
    return isinstance(value, dict) and {*value} == {"dtype", "shape", "data"}


def kind_of(value):
    """What must agree before two values can be compared."""
    return (value["dtype"], *value["shape"]) if is_array(value) else type(value)


def brief(value):
    return f"{value['dtype']} {value['shape']}" if is_array(value) else str(value)


def compared(first, second, field=""):
    """(field, first, second, ulps) of everything that differs between two results."""
    if kind_of(first) != kind_of(second):
        yield field, brief(first), brief(second), np.inf
    elif is_array(first):
        arrays = as_array(first), as_array(second)
        apart = distances(*arrays)
        if apart.any():
            worst = np.unravel_index(np.argmax(apart), apart.shape)
            place = f"{field}[{', '.join(map(str, worst))}], the worst of {np.count_nonzero(apart)}"
            yield place, *(str(array[worst]) for array in arrays), float(apart[worst])
    elif isinstance(first, dict):
        for name in dict.fromkeys([*first, *second]):
            yield from compared(
                first.get(name, "missing"), second.get(name, "missing"), f"{field}.{name}".lstrip(".")
            )
    elif isinstance(first, list):
        if len(first) != len(second):
            yield f"{field}, length", str(len(first)), str(len(second)), np.inf
        for n, items in enumerate(zip(first, second, strict=False)):
            yield from compared(*items, f"{field}.{n}")
    elif isinstance(first, float):
        ulps = float(distances(np.array(first), np.array(second)))
        if ulps:
            yield field, repr(first), repr(second), ulps
    elif first != second:
        yield field, str(first), str(second), np.inf


def reason_for(call, field, first, second, ulps, words, accepted):
    """Why this difference is expected, or ""."""
    for old, (new, reason) in words.items():
        first = first.replace(old, new)
        if first == second:
            return reason
    for pattern, limit, reason in accepted:
        if fnmatch.fnmatchcase(f"{call} | {field}", pattern) and (limit is None or ulps <= limit):
            return reason
    return f"within {ULPS} ulp" if ulps <= ULPS else ""


def differences(first, second, words=WORDS, accepted=ACCEPTED):
    """Every difference of the results of two trees, call -> result."""
    for call in dict.fromkeys([*first, *second]):
        if call not in first or call not in second:
            found_in = "first" if call in first else "second"
            yield Difference(call, "", f"made only on the {found_in} tree", "", "", np.inf, "")
            continue
        for difference in compared(first[call], second[call]):
            yield Difference(
                call, first[call]["arguments"], *difference, reason_for(call, *difference, words, accepted)
            )


def listed(found):
    """The differences beyond a few ulp, call by call; of a call with many, those without a reason first."""
    lines, by_call = [], {}
    for difference in found:
        if difference.ulps > ULPS:
            by_call.setdefault((difference.call, difference.arguments), []).append(difference)
    for (call, arguments), differing in by_call.items():
        differing.sort(key=lambda difference: bool(difference.reason))
        lines += [call, f"  called with: {arguments}", *map(str, differing[:SHOWN])]
        lines += [f"  and {len(differing) - SHOWN} more fields"] if len(differing) > SHOWN else []
    return "\n".join(lines)


def table(calls, found):
    """Calls counted by kind: equal, within 2 ulp, differing with a reason, differing."""
    columns = ("calls", "equal", f"within {ULPS} ulp", "explained", "different")
    rows, state = {}, dict.fromkeys(calls, 1)
    for difference in found:
        level = 2 if difference.ulps <= ULPS else 3 if difference.reason else 4
        state[difference.call] = max(state.get(difference.call, 1), level)
    for call, level in state.items():
        for kind in (call.split(":")[0].split(",")[0], "all"):
            counts = rows.setdefault(kind, [0] * len(columns))
            counts[0] += 1
            counts[level] += 1
    rows["all"] = rows.pop("all", [0] * len(columns))
    width = max(map(len, rows))
    lines = [("", columns), *rows.items()]
    return "\n".join(" ".join([f"{kind:{width}}", *(f"{n:>13}" for n in counts)]) for kind, counts in lines)


# ---- the two trees ----------------------------------------------------------------------------------------


def extract(commit, tree):
    """Both packages of a commit, or of the working tree (None), into a new folder."""
    tree.mkdir()
    if commit is None:
        for name in PACKAGES:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        return
    archive = subprocess.run(
        ["git", "archive", commit, *PACKAGES], check=False, cwd=ROOT, capture_output=True
    )
    if archive.returncode:
        raise SystemExit(archive.stderr.decode().strip())
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(tree, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def digest_of_kernels(tree):
    digest = hashlib.sha256()
    for path in sorted((tree / "cpu_kernels").rglob("*.py")):
        digest.update(f"{path.relative_to(tree)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def results_of(commit, folder, name, flags=()):
    """Results of one tree, from its own process. Both trees stand in the same place, one after the other.

    No text differs by a path then, and trees with the same kernel sources share compiled code, whose key
    has paths.
    """
    tree, path = folder / "tree", folder / f"{name}.json"
    shutil.rmtree(tree, ignore_errors=True)
    (folder / name).rename(tree)
    environment = (
        os.environ
        | ONE_THREAD
        | {
            "PYTHONPATH": str(tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "CPU_KERNELS_CACHE_DIR": str(folder / digest_of_kernels(tree)),
        }
    )
    print(f"{name} tree: {commit or 'working tree'}", file=sys.stderr, flush=True)
    command = [sys.executable, folder / "calls.py", "--tree", tree, "--write", path, *flags]
    done = subprocess.run([str(word) for word in command], check=False, env=environment, cwd=folder)
    if done.returncode:
        raise SystemExit(f"the calls could not be made on {commit or 'the working tree'}")
    return json.loads(path.read_text())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit", nargs="?", help="the commit that is compared with")
    parser.add_argument("commit2", nargs="?", help="the other one; default: the working tree")
    parser.add_argument("--quick", action="store_true", help="every tenth call")
    parser.add_argument("--only", choices=GENERATORS, help="calls of one kind")
    for name in ("--tree", "--write"):  # in the process that makes the calls of one tree
        parser.add_argument(name, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.tree:
        write_results(asked.tree, asked.write, asked.quick, asked.only)
        return 0
    if asked.commit is None:
        parser.error("a commit to compare with must be given")
    commits = {"first": asked.commit, "second": asked.commit2}
    flags = [*(["--quick"] if asked.quick else []), *(["--only", asked.only] if asked.only else [])]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        shutil.copy(__file__, folder / "calls.py")  # all may be edited meanwhile
        for name, commit in commits.items():
            extract(commit, folder / name)
        first, second = (results_of(commit, folder, name, flags) for name, commit in commits.items())
    found = list(differences(first, second))
    print(listed(found))
    print(table({**first, **second}, found))
    unexplained = sum(not difference.reason for difference in found)
    print(f"differences without a reason: {unexplained}")
    return int(unexplained > 0)


if __name__ == "__main__":
    raise SystemExit(main())
