"""Pages from the results of all hosts: benchmarks/results.md, and the table of the main shapes in README."""

import json

import numpy as np
from grid import MAIN
from intervals import median_interval, paired, quartiles
from peers import CONTENDERS, OURS

MARKERS = ("<!-- benchmarks:begin -->", "<!-- benchmarks:end -->")
NO_HOST = "No host has been measured with this method yet."
AGREEMENT = 0.05  # by which the two readings may differ


def load(folder):
    """Results of every host, by name."""
    return sorted(
        (json.loads(path.read_text()) for path in folder.glob("*.json")),
        key=lambda host: host["cpu"]["name"],
    )


def limits(row):
    """Operations and bytes a second in each round; of the two readings the greater one."""
    return {
        "FMA": row["limits"]["fma"],
        "reading": max((row["limits"][name] for name in ("read_by_loads", "read_by_blas")), key=np.median),
    }


def fractions(row):
    """Of each limit, in each round."""
    done = {"FMA": row["flops"], "reading": row["bytes"]}
    return {
        name: paired(done[name] / np.array(row["seconds"][OURS]), limit)
        for name, limit in limits(row).items()
    }


def reading_apart(row):
    """How far the second reading lies from the first: -0.03 is 3 % slower."""
    return float(np.median(paired(row["limits"]["read_by_blas"], row["limits"]["read_by_loads"]))) - 1


def binding(row):
    """(limit, fraction): the one of the two limits that leaves this shape less room."""
    return max(
        ((name, float(np.median(values))) for name, values in fractions(row).items()),
        key=lambda pair: pair[1],
    )


def best_peer(row):
    """(name, ratios of its time to ours in each round), or None without peers."""
    others = {name: np.median(times) for name, times in row["seconds"].items() if name != OURS}
    if not others:
        return None
    name = min(others, key=others.get)
    return name, paired(row["seconds"][name], row["seconds"][OURS])


def summary(hosts):
    """The main shapes on every host, one column a host."""
    if not hosts:
        return NO_HOST
    shapes = [str(shape) for shape in MAIN]
    counts = sorted({row["threads"] for host in hosts for row in host["rows"] if row["shape"] in shapes})
    text = [
        "| shape | threads | " + " | ".join(title(host) for host in hosts) + " |",
        "|" + "---|" * (2 + len(hosts)),
    ]
    for shape in shapes:
        for count in counts:
            found = [
                next((row for row in host["rows"] if (row["shape"], row["threads"]) == (shape, count)), None)
                for host in hosts
            ]
            if any(found):
                text.append(
                    f"| {shape} | {count} | " + " | ".join(brief(row) if row else "" for row in found) + " |"
                )
    return "\n".join(text)


def brief(row):
    limit, fraction = binding(row)
    peer = best_peer(row)
    return f"{fraction:.2f} of {limit}" + (f"; {np.median(peer[1]):.2f}x {peer[0]}" if peer else "")


def title(host):
    return f"{host['cpu']['name']}, {host['cpu']['cpus']} CPUs"


def page(hosts):
    """Every row of every host."""
    text = [
        "# Speed of cpu_kernels",
        "",
        "Written by `python benchmarks/run.py`; what the columns mean stands in [README](../README.md).",
        "",
    ]
    for host in hosts:
        text += [f"## {title(host)}", "", *about(host), ""]
        for kind in ("prefill", "decode"):
            rows = [row for row in host["rows"] if row["kind"] == kind]
            text += [*table(kind, rows), "", *notes(rows), ""] if rows else []
    return "\n".join(text if hosts else [*text, NO_HOST, ""])


def about(host):
    """Paragraphs over a host's tables: where the figures come from and what the limits were."""
    runs = [
        f"{run['time']}, commit {run['commit']}, "
        + ", ".join(f"{k} {v}" for k, v in run["versions"].items())
        for run in host["runs"].values()
    ]
    cpu = host["cpu"]
    text = [
        f"CPU family {cpu['family']}, model {cpu['model']}, stepping {cpu['stepping']}; float32. "
        f"Measured: {'; '.join(runs)}.",
        "",
    ]
    for count in sorted({row["threads"] for row in host["rows"]}):
        rows = [row for row in host["rows"] if row["threads"] == count]
        middle = {
            name: np.median([np.median(row["limits"][name]) for row in rows]) * 1e-9
            for name in rows[0]["limits"]
        }
        apart, others = [abs(reading_apart(row)) for row in rows], [row["others"] for row in rows]
        text.append(
            f"{count} thread(s): FMA {middle['fma']:.0f} GFLOP/s; reading {middle['read_by_loads']:.1f} "
            f"GB/s by vector loads, {middle['read_by_blas']:.1f} by BLAS, at most {AGREEMENT:.0%} apart in "
            f"{sum(x <= AGREEMENT for x in apart)} of {len(rows)} rows (median {np.median(apart):.1%}). "
            f"Other processes took {np.median(others):.2f} CPUs in the median row, up to {max(others):.2f}."
        )
        text.append("")
    return text[:-1]


def table(kind, rows):
    names = [name for name in CONTENDERS if any(name in row["seconds"] for row in rows)]
    order = ("FMA", "reading") if kind == "prefill" else ("reading", "FMA")
    heads = [
        kind,
        "threads",
        f"of {order[0]}",
        f"of {order[1]}",
        "to best peer",
        *(f"{name}, ms" for name in names),
    ]
    text = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        shares, peer = fractions(row), best_peer(row)
        low, middle, high = quartiles(shares[order[0]])
        cells = [
            row["shape"],
            str(row["threads"]),
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{np.median(shares[order[1]]):.2f}",
            ratio(*peer) if peer else "",
        ]
        text.append(
            "| " + " | ".join(cells + [milliseconds(row["seconds"].get(name)) for name in names]) + " |"
        )
    return text


def ratio(name, values):
    low, middle, high = median_interval(values)
    return f"{middle:.2f}x {name}" + (f" ({low:.2f} to {high:.2f})" if len(values) > 1 else "")


def milliseconds(times):
    """Median and quartiles; a time taken once stands alone and says so."""
    if times is None:
        return "-"
    low, middle, high = (significant(1e3 * x) for x in quartiles(times))
    return f"{middle} (once)" if len(times) == 1 else f"{middle} ({low} to {high})"


def significant(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def notes(rows):
    return [
        f"- {row['shape']}, {row['threads']} thread(s): {'; '.join(doubts(row))}."
        for row in rows
        if doubts(row)
    ]


def doubts(row):
    """What a reader must know before believing a row."""
    used, threads, apart = row["cpus_used"], row["threads"], reading_apart(row)
    found = [
        f"{name} used {x:.2f} CPUs, more than its threads" for name, x in used.items() if x > 1.05 * threads
    ]
    if threads == 1 and used[OURS] < 0.95:
        found.append(f"other processes left {OURS} only {used[OURS]:.2f} of its CPU")
    if abs(apart) > AGREEMENT:
        found.append(f"the readings differ by {apart:+.0%} (BLAS against loads), the greater counts")
    return found


def write(results, page_path, readme):
    hosts = load(results)
    page_path.write_text(page(hosts))
    text = readme.read_text()
    before, rest = text.split(MARKERS[0])
    readme.write_text(f"{before}{MARKERS[0]}\n{summary(hosts)}\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}")
