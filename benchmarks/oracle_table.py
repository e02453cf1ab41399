"""What the oracle catches, names and wrongly accuses, as tables.

    python benchmarks/oracle_table.py                     all tables, 500 runs of correct kernels
    python benchmarks/oracle_table.py --count 10000       the full run
    python benchmarks/oracle_table.py --only alarms       one of: mutants, diagnosis, alarms, xray
    python benchmarks/oracle_table.py --count 10000 --write
                                                          also into oracle_results.json and .md beside
                                                          this file, each table for itself

Mutants: every broken kernel against every rule, on inputs made to bite and on ordinary ones. Diagnosis:
how often the right mistake comes first. Alarms: correct kernels that a rule rejects, emulated in every
format and real ones of the libraries that are installed, over random options, shapes and input families.
Xray: how often its first answer was right on faults of other authors (`xray_table.py` has asked, and a judge
marked), and what it says of correct kernels.
"""

import argparse
import itertools
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]

import oracle_results
import xray_table
from correct_kernels import emulated_makers, real_makers, xray_alarms
from oracle_diagnosis import diagnosis_table

import refattn
from refattn.oracle.inputs import local
from refattn.oracle.inputs.families import FAMILIES, attention_inputs
from refattn.oracle.inputs.latent import latent_inputs
from refattn.oracle.inputs.merge import merge_inputs
from refattn.oracle.inputs.packed import packed_inputs
from refattn.oracle.inputs.paged import paged_inputs
from refattn.oracle.inputs.rotary import rotary_inputs
from refattn.oracle.inputs.suites import DENSE_SUITE, SHAPED_SUITE, default_suite
from refattn.oracle.mistakes.mutants import MUTANTS
from refattn.oracle.mistakes.mutation import Trials
from refattn.oracle.mistakes.rules import RULES, Observation
from refattn.oracle.verdict.check import check

DTYPES = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float64": np.float64,
}


# mutants


def ordinary_suite(dtype, seed=0):
    """The same calls with N(0, 1) data: what most test suites use."""
    cases = [
        attention_inputs("normal", names, dtype=dtype, seed=seed)
        for names in dict.fromkeys(names for _, names in DENSE_SUITE)
    ]
    cases += [
        attention_inputs("normal", names, dtype=dtype, seed=seed, sizes=sizes)
        for _, names, sizes in SHAPED_SUITE
    ]
    cases += [
        make(dtype, seed, causal=True)
        for make in (packed_inputs, paged_inputs, latent_inputs, rotary_inputs)
    ]
    return [
        *cases,
        merge_inputs(dtype, seed),
        *(case for case in local.suite(dtype, seed) if case.family == "normal"),
    ]


def mutant_table(dtype_names):
    rows = []
    for name in dtype_names:
        print(
            f"\nMutants, {name}: told from the unbroken kernel (caught at all) / accepted although "
            "different / not shown by the data; false alarms"
        )
        print(f"{'rule':22s} {'inputs that bite':>34s} {'ordinary N(0, 1) inputs':>34s}")
        bite = default_suite(DTYPES[name])
        suites = {"bite": Trials(bite), "ordinary": Trials(ordinary_suite(DTYPES[name]))}
        for rule in RULES:
            cells = []
            for suite, trials in suites.items():
                score = trials.score(rule)
                cells.append(
                    f"{len(score.told_apart)} ({len(score.caught)}) / {len(score.missed)} / "
                    f"{len(score.hidden)}; {len(score.false_alarms)} of {score.inputs}"
                )
                rows.append(
                    {
                        "dtype": name,
                        "rule": rule,
                        "suite": suite,
                        "mutants": len(trials.mutants),
                        "inputs": score.inputs,
                        "told_apart": len(score.told_apart),
                        "caught": len(score.caught),
                        "missed": list(score.missed),
                        "hidden": list(score.hidden),
                        "false_alarms": list(score.false_alarms),
                    }
                )
            print(f"{rule:22s} {cells[0]:>34s} {cells[1]:>34s}", flush=True)
    return rows


# false alarms


def accepted_by(rule, inputs, result, right):
    lse = right[1] if result[1] is None else result[1]
    seen = Observation(inputs, np.asarray(result[0]), np.asarray(lse), (result[0], lse), right)
    return RULES[rule].accepts(seen)


XRAY_RUNS = 500  # of correct kernels, at most
OTHER_RULES = ("numpy.allclose", "torch.testing", "flash_attention 2x", "fixed 1e-2")
EVERY = 4  # the other rules judge one run in four


def alarm_table(count, seed, minutes=np.inf):
    emulated, real = list(emulated_makers().items()), list(real_makers().items())
    runs, judged, alarms, examples = Counter(), Counter(), Counter(), []
    rng = np.random.default_rng(seed)
    start = time.monotonic()
    for i in itertools.count():
        if runs.total() >= count or time.monotonic() - start > 60 * minutes:
            break
        pool = real if real and i % 2 else emulated
        label, make = pool[(i // 2) % len(pool)]
        own = int(rng.integers(2**63))
        run = make(np.random.default_rng(own))
        if run is None:
            continue
        inputs, spec = run.inputs, run.spec
        try:
            result = inputs.call(run.kernel)
        except NotImplementedError:
            continue
        right = refattn.attention_with_lse(*inputs.arrays, **inputs.options)
        report = check(
            result[0],
            *inputs.arrays,
            lse=result[1],
            spec=spec,
            reference=lambda *arrays, right=right, **options: right,
            **inputs.options,
        )
        runs[label] += 1
        if report.wrong:
            alarms[label, "refattn"] += 1
            examples.append(
                f"{label}, {inputs.name}, shapes {[a.shape for a in inputs.arrays]}, seed {own}: "
                f"{report.summary}"
            )
        if runs[label] % EVERY == 1:
            judged[label] += 1
            for rule in OTHER_RULES:
                alarms[label, rule] += not accepted_by(rule, inputs, result, right)
    return print_alarms(runs, judged, alarms, examples, time.monotonic() - start)


def print_alarms(runs, judged, alarms, examples, seconds):
    print(
        f"\nCorrect kernels rejected, of {sum(runs.values())} runs over random options, shapes and "
        f"families ({seconds:.0f} s)"
    )
    print(
        f"{'kernel':34s} {'runs':>6s} {'refattn':>8s} {'judged':>8s}",
        *(f"{rule:>19s}" for rule in OTHER_RULES),
    )
    for label in (*sorted(runs), "all"):
        labels = sorted(runs) if label == "all" else [label]
        total = lambda rule, labels=labels: sum(alarms[name, rule] for name in labels)
        print(
            f"{label:34s} {sum(runs[name] for name in labels):6d} {total('refattn'):8d} "
            f"{sum(judged[name] for name in labels):8d}",
            *(f"{total(rule):19d}" for rule in OTHER_RULES),
        )
    for example in examples[:20]:
        print("   ", example)
    return [
        {
            "kernel": label,
            "runs": runs[label],
            "judged by others": judged[label],
            **{rule: alarms[label, rule] for rule in ("refattn", *OTHER_RULES)},
        }
        for label in runs
    ]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500, help="runs of correct kernels")
    parser.add_argument(
        "--minutes", type=float, default=np.inf, help="stop the runs of correct kernels after this long"
    )
    parser.add_argument("--only", choices=("mutants", "diagnosis", "alarms", "xray"))
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--pairs", type=int, default=40, help="pairs of mistakes to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument(
        "--write",
        action="store_true",
        help="also write oracle_results.json and oracle_results.md beside this file",
    )
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # the libraries' own
    numbers = {"mutants": len(MUTANTS)}
    print(f"{len(MUTANTS)} mutants, {len(RULES)} rules, {len(FAMILIES)} input families")
    if options.only in (None, "mutants"):
        numbers["rules"] = mutant_table(options.dtypes)
    if options.only in (None, "diagnosis"):
        numbers["diagnosis"] = diagnosis_table(
            {name: DTYPES[name] for name in options.dtypes}, options.seed, options.pairs
        )
    if options.only in (None, "alarms"):
        numbers["alarms"] = alarm_table(options.count, options.seed, options.minutes)
    if options.only in (None, "xray"):
        numbers["xray"] = xray_table.table()
        print("", *oracle_results.xray_table(numbers["xray"]), sep="\n")
        rows = xray_alarms(min(options.count, XRAY_RUNS), options.seed)
        numbers["xray alarms"] = {"rows": rows, "host": xray_table.host()}
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1))
    if options.write:
        oracle_results.write(numbers, Path(__file__).resolve().parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
