"""The numbers of oracle_table.py as a file to commit and a page to read. `write` replaces the tables
it is given and keeps the others.
"""

import json

# of the 19 rules those that a kernel author is likely to use; the JSON file has all
SHOWN = ("refattn", "numpy.allclose", "torch.testing", "flash_attention 2x", "fixed 1e-2")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def write(numbers, folder):
    """Merge `numbers` into oracle_results.json in `folder` and render oracle_results.md from it."""
    path = folder / "oracle_results.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= numbers
    path.write_text(json.dumps(known, indent=1) + "\n")
    (folder / "oracle_results.md").write_text(page(known))


def page(numbers):
    """All tables as Markdown."""
    lines = [
        "# What the oracle catches, names and wrongly accuses",
        "",
        "Written by `python benchmarks/oracle_table.py --count 10000 --write`.",
        "",
    ]
    if "rules" in numbers:
        lines += ["## Broken kernels that a rule lets through", "", *rule_table(numbers["rules"]), ""]
    if "alarms" in numbers:
        lines += ["## Correct kernels that a rule rejects", "", *alarm_table(numbers["alarms"]), ""]
    if "diagnosis" in numbers:
        lines += ["## The right mistake named", "", *diagnosis_table(numbers["diagnosis"]), ""]
    if numbers.get("xray"):
        lines += ["## Faults that nobody had in mind", "", *xray_table(numbers["xray"]), ""]
    if numbers.get("xray alarms"):
        lines += ["## Correct kernels under xray", "", *xray_alarm_table(numbers["xray alarms"]), ""]
    if numbers.get("times"):
        lines += ["## How long a verdict takes", "", *times_tables(numbers["times"]), ""]
    return "\n".join(lines)


def rule_table(rows):
    """Mutants of the catalogue that each rule misses, on the default inputs and on N(0, 1) data."""
    found = {(row["dtype"], row["rule"], row["suite"]): row for row in rows}
    dtypes = [name for name in DTYPES if (name, SHOWN[0], "bite") in found]
    lines = [
        "Missed of the broken kernels (a mutant counts as caught where the unbroken kernel passes and it "
        "does not), on inputs made to bite / on",
        "N(0, 1) data of the same calls. In brackets: inputs on which the rule rejects the unbroken kernel.",
        "",
        "| rule | "
        + " | ".join(f"{name}, of {found[name, SHOWN[0], 'bite']['mutants']}" for name in dtypes)
        + " |",
        "|---|" + "---:|" * len(dtypes),
    ]
    for rule in SHOWN:
        cells = []
        for name in dtypes:
            bite, plain = found[name, rule, "bite"], found[name, rule, "ordinary"]
            missed = [
                row["mutants"] - row["told_apart"] - never(found, name, row["suite"])
                for row in (bite, plain)
            ]
            alarms = [f"{len(row['false_alarms'])} of {row['inputs']}" for row in (bite, plain)]
            cells.append(f"{missed[0]} / {missed[1]} ({alarms[0]} / {alarms[1]})")
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    same = {name: found[name, SHOWN[0], "bite"]["hidden"] for name in dtypes}
    lines += [
        "",
        "Not counted: what changes no bit of the results on the default inputs ("
        + ("; ".join(f"{name}: {', '.join(ids)}" for name, ids in same.items() if ids) or "none")
        + ").",
        "Missed by the own rule on N(0, 1) data means not shown by such data: results equal bit for bit, "
        "except " + own_misses(found, dtypes) + ".",
    ]
    return lines


def never(found, dtype, suite):
    """Mutants whose results are those of the unbroken kernel on all default inputs: nothing to miss."""
    return len(found[dtype, SHOWN[0], "bite"]["hidden"])


def own_misses(found, dtypes):
    return "; ".join(
        f"{name}: {', '.join(found[name, SHOWN[0], 'ordinary']['missed']) or 'none'}" for name in dtypes
    )


def alarm_table(rows):
    """False alarms of each rule by kernel."""
    total = sum(row["runs"] for row in rows)
    judged = sum(row["judged by others"] for row in rows)
    lines = [
        f"{total} runs of correct kernels over random options, shapes and input families; the other rules "
        f"judged {judged} of them.",
        "",
        "| kernel | runs | refattn | " + " | ".join(SHOWN[1:]) + " |",
        "|---|---:|---:|" + "---:|" * len(SHOWN[1:]),
    ]
    for row in [*sorted(rows, key=lambda row: row["kernel"]), _sum(rows)]:
        shares = [f"{row[rule]} of {row['judged by others']}" for rule in SHOWN[1:]]
        lines.append(f"| {row['kernel']} | {row['runs']} | {row['refattn']} | " + " | ".join(shares) + " |")
    return lines


def _sum(rows):
    return {"kernel": "all"} | {
        key: sum(row[key] for row in rows) for key in ("runs", "judged by others", *SHOWN)
    }


def diagnosis_table(rows):
    """How often the right mistake comes first, by dtype; then pairs of mistakes and the hand-written
    kernels.
    """
    columns = ("first", "equal", "other", "within rounding", "first with kernel", "seed")
    lines = [
        "First: the mistake comes first; equal: named among those that predict the same numbers on these "
        "inputs; within rounding: shown by no input.",
        "First with kernel: where `diagnose` may run the kernel to tell equal ones apart.",
        "",
        f"| kernels | {' | '.join(columns)} |",
        "|---|" + "---:|" * len(columns),
    ]
    singles = [row for row in rows if "dtype" in row]
    for row in singles:
        lines.append(
            f"| mutants, {row['dtype']} | " + " | ".join(str(row.get(key, "")) for key in columns) + " |"
        )
    missed = [f"{row['dtype']}: {name}" for row in singles for name in row["wrong"]]
    lines += ["", "Not first: " + ("; ".join(missed) or "none") + "."]
    for row in rows:
        if "pairs" in row:
            lines += ["", pair_line(row["pairs"])]
        if "hand-written" in row:
            hand = row["hand-written"]
            lines += [
                "",
                f"Hand-written wrong kernels named rightly: {hand['right']} of {sum(hand.values())}.",
            ]
    return lines


def pair_line(row):
    counts = {key: count for key, count in row.items() if key not in ("median seconds", "not found")}
    each = ", ".join(f"{key} {count}" for key, count in counts.items())
    words = f"Pairs of mistakes drawn at random, both showing: {each}, of {sum(counts.values())}"
    words += f"; median {row['median seconds']:.1f} s" if "median seconds" in row else ""
    return f"{words}. Not found: {'; '.join(row.get('not found', ())) or 'none'}."


# what a judge marks a first answer with
MARKS = {
    "right": "place AND nature are right in the first answer",
    "half": "one of place and nature is right, the other missing or imprecise",
    "located": "the place is right, and the answer says that the nature is unknown",
    "wrong": "a wrong cause or a wrong place, said with confidence",
    "none": "no useful answer",
}


def xray_table(rows):
    """Marks of first answers on each set of faults, by way to ask, dtype and form; times and calls."""
    lines = [
        "First answers on faults in kernels of other authors, each marked by a judge who read the fault and",
        "the answer only:",
        "",
        *(f"- {mark}: {rule}" for mark, rule in MARKS.items()),
        "",
        "Calls of the kernel: in brackets those beyond the ceil(S / E) that read every weight once.",
        "",
        f"| set | asked | faults | {' | '.join(MARKS)} | crashes | seconds, median / largest | calls |",
        "|---|---|" + "---:|" * (len(MARKS) + 4),
    ]
    for row in rows:
        group = "" if row["group"] == "all" else f", {row['group']}"
        cells = [
            row["set"] + group,
            row["way"],
            row["faults"],
            *(_share(row[mark], row["faults"]) for mark in MARKS),
            row["crashes"],
            f"{row['median seconds']:.1f} / {row['largest seconds']:.1f}",
            f"{row['median calls']:g} ({row['median calls beyond the least']:g})",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    hosts = {(row["set"], row["way"]): row["host"] for row in rows}
    return [*lines, "", *(f"- {name}, {way}: {_machine(host)}" for (name, way), host in hosts.items())]


def _share(count, total):
    return f"{count} ({100 * count / total:.0f} %)"


def _machine(host):
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    return f"{host['cpu']}, {versions}, commit {host['commit']}, {host['date']}"


def xray_alarm_table(numbers):
    """Correct kernels that `xray` does not say to agree, by the library they come from."""
    keys = ("calls", "accused", "not judged", "crashes")
    totals = {}
    for row in numbers["rows"]:
        for origin in (row["kernel"].split()[0], "all"):
            total = totals.setdefault(origin, {"kernels": 0} | dict.fromkeys(keys, 0))
            total["kernels"] += 1
            for key in keys:
                total[key] += row[key]
    totals["all"] = totals.pop("all")  # last
    accused = [row["kernel"] for row in numbers["rows"] if row["accused"]]
    return [
        "Over random options, shapes and input families; a kernel: a library, its way and dtype; accused: "
        "`xray` describes a fault.",
        "",
        f"| from | kernels | {' | '.join(keys)} |",
        "|---|" + "---:|" * (len(keys) + 1),
        *(f"| {origin} | {' | '.join(map(str, total.values()))} |" for origin, total in totals.items()),
        "",
        f"Accused: {', '.join(accused) or 'none'}. {_machine(numbers['host'])}.",
    ]


def times_tables(machines):
    """Seconds and memory of `check` and `diagnose` at the sizes of `oracle_times.py`, machine by machine."""
    lines = [
        "`python benchmarks/oracle_times.py --diagnose --write`: wall seconds (of all cores together), MiB",
        "above the arrays; target: wall seconds of `check` on two quiet cores, 30 for `diagnose`.",
    ]
    ways = ("diagnose right", "diagnose wrong")
    for name, machine in machines.items():
        lines += [
            "",
            f"{name}; {', '.join(f'{key} {value}' for key, value in machine['versions'].items())}; commit "
            f"{machine['commit']}:",
            "",
            f"| case | check | MiB | target | NumPy float64 | {' | '.join(ways)} | reference |",
            "|---|---:|---:|---:|---:|---:|---:|---|",
        ]
        for row in machine["rows"]:
            memory = row["check"]["MiB"]
            cells = [
                row["case"],
                _spent(row["check"]),
                "" if memory is None else f"{memory:.0f}",
                f"{row['target']:g}",
                _spent(row["NumPy"]),
                *(_spent(row[way]) if way in row else "" for way in ways),
                row["reference"],
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spent(figures):
    return f"{figures['seconds']:.3g} ({figures['core seconds']:.3g})"
