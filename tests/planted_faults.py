"""Planted faults: does a test notice one wrong operator, constant, step or row of a table in the packages?

    python tests/planted_faults.py --count 60 --resume FILE             the tests likely to notice each
    fault
    python tests/planted_faults.py --count 60 --resume FILE --readme    then the rest of README's command
    python tests/planted_faults.py --count 60 --resume FILE --whole     then what `.ci/run` runs besides
    python tests/planted_faults.py --clean                              no fault: all these tests must pass

Faults are drawn from seed and number alone, in turn over the folders of both packages, and are changes of
the syntax tree: layout and comments make no difference. Each is planted in a copy of the tracked files;
one that cannot be imported, or compiles to the same code, is drawn again. With --resume, results are kept
in a file of JSON lines, so that a long list can be run in portions; a fault that is already there is only
given the tests it lacks. A fault counts as found when a test fails or when tests stop making progress.
Some change nothing that can be seen, so not every survivor is a gap.
"""

import argparse
import ast
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("refattn", "cpu_kernels")
STAGES = ("likely", "readme", "whole")

# A file or folder -> the test files most likely to notice, quickest first; the longest match counts.
LIKELY = {
    "refattn": "test_reference test_errors test_latent test_identities test_array_likes",
    "refattn/convert.py": "test_convert",
    "refattn/costs.py": "test_sizes",
    "refattn/models.py": "test_sizes",
    "refattn/sizes.py": "test_sizes",
    "refattn/verify.py": "test_verify test_main_job",
    "refattn/cli.py": "test_cli test_verify",
    "refattn/pytest_plugin.py": "test_plugin",
    "refattn/merge.py": "test_merge_dtypes test_identities test_reference",
    "refattn/calls": (
        "test_errors test_reference test_hidden test_array_likes test_interop test_interop_errors"
    ),
    "refattn/commands": ("test_cli test_doctor test_sizes test_verify test_vectors test_messages"),
    "refattn/exact": (
        "test_reference test_plain test_exact test_exact_options test_exact_range test_exact_channels "
        "test_hidden test_scale"
    ),
    "refattn/goldens": "test_goldens test_verify",
    "refattn/oracle": "test_spec test_messages test_harness",
    "refattn/oracle/arithmetic": ("test_formats test_spec test_other_specs test_bounds"),
    "refattn/oracle/bounds": (
        "test_bounds test_check_reference test_bound_constants test_level_rows test_uncertain_rows "
        "test_verdict_range test_unjudged test_lean test_campaign"
    ),
    "refattn/oracle/diagnosis": (
        "test_diagnose test_tell_apart test_convention_rows test_rereadings test_mutants"
    ),
    "refattn/oracle/dialects": (
        "test_dialects test_dialect_notes test_calls_in_dialects test_axis_hints test_harness_dialects"
    ),
    "refattn/oracle/harness": (
        "test_guards test_harness test_harness_failures test_merge_kernels test_plugin"
    ),
    "refattn/oracle/inputs": ("test_inputs test_coverage test_harness test_vectors"),
    "refattn/oracle/mistakes": ("test_mutants test_mutation test_diagnose test_convention_rows"),
    "refattn/oracle/simulated": ("test_emulation test_formats test_mutants test_bounds test_campaign"),
    "refattn/oracle/vectors": ("test_vectors test_vector_formats test_vector_attacks test_pack_attacks"),
    "refattn/oracle/verdict": (
        "test_verdict test_verdict_range test_unjudged test_false_alarms test_messages"
    ),
    "cpu_kernels": (
        "test_cutting test_kernels test_errors test_kernels_hidden test_kernels_memory "
        "test_neighbour test_kernels_range"
    ),
    "cpu_kernels/strided.py": "test_kernels_narrow test_kernels",
    "cpu_kernels/compiler": "test_jit test_cache test_kernels_interpreted",
    "cpu_kernels/kernels": (
        "test_kernels_exponential test_kernels test_kernels_hidden test_kernels_narrow "
        "test_kernels_range test_kernels_edges test_kernels_interpreted"
    ),
    "cpu_kernels/machine": "test_thread_pool test_cpu_limits",
    "cpu_kernels/simd": (
        "test_jit test_kernels_exponential test_kernels test_kernels_narrow test_kernels_interpreted"
    ),
}

BINARY = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
    ast.Pow: "*",
    ast.LShift: ">>",
    ast.RShift: "<<",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.MatMult: "*",
}
COMPARISONS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
SIMPLE = (ast.Assign, ast.AugAssign, ast.Expr)
TABLES = (ast.Tuple, ast.List, ast.Set, ast.Dict)


@dataclass(frozen=True)
class Fault:
    """One change: bytes [start, stop) of a file become `text`."""

    path: str
    line: int
    kind: str
    start: int
    stop: int
    text: str
    what: str

    def planted(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.stop :]


class Finder(ast.NodeVisitor):
    """All faults that one file may get."""

    def __init__(self, path, source: bytes):
        self.path, self.source, self.faults, self.depth = path, source, [], 0
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))
        self.visit(ast.parse(source))

    def span(self, node):
        return (
            self.line_starts[node.lineno - 1] + node.col_offset,
            self.line_starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, node):
        start, stop = self.span(node)
        return self.source[start:stop].decode()

    def add(self, kind, node, text, what=None, span=None):
        start, stop = span or self.span(node)
        what = what or f"{_short(self.source[start:stop].decode())} -> {_short(text)}"
        self.faults.append(Fault(self.path, node.lineno, kind, start, stop, text, what))

    def visit(self, node):
        if (
            isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom))
            or _types_only(node)
            or _says_something(node)
        ):
            return  # messages, and what only type checkers read
        super().visit(node)

    def generic_visit(self, node):
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns"):
                continue
            if isinstance(value, list):
                if value and isinstance(value[0], ast.stmt):
                    self.order(value)
                for item in value:
                    if isinstance(item, ast.AST):
                        self.visit(item)
            elif isinstance(value, ast.AST):
                self.visit(value)

    def order(self, statements):
        for first, second in itertools.pairwise(statements):
            if isinstance(first, SIMPLE) and isinstance(second, SIMPLE) and _depends(first, second):
                (start, middle), (after, stop) = self.span(first), self.span(second)
                between = self.source[middle:after].decode()
                text = self.text(second) + between + self.text(first)
                self.add(
                    "order",
                    first,
                    text,
                    f"exchanged with the next: {_short(self.text(first))}",
                    (start, stop),
                )

    def visit_FunctionDef(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_BinOp(self, node):
        text = isinstance(node.left, (ast.Constant, ast.JoinedStr)) and isinstance(
            getattr(node.left, "value", ""), str
        )
        if type(node.op) in BINARY and not text:
            self.add(
                "operator",
                node,
                f"(({self.text(node.left)}) {BINARY[type(node.op)]} ({self.text(node.right)}))",
            )
        self.generic_visit(node)

    def visit_Compare(self, node):
        if len(node.ops) == 1:
            new = COMPARISONS[type(node.ops[0])]
            self.add(
                "operator", node, f"(({self.text(node.left)}) {new} ({self.text(node.comparators[0])}))"
            )
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        new = " or " if isinstance(node.op, ast.And) else " and "
        self.add("operator", node, "(" + new.join(f"({self.text(value)})" for value in node.values) + ")")
        self.generic_visit(node)

    def visit_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            self.add("constant", node, str(not value))
        elif isinstance(value, int):
            # a large limit off by one is seldom a fault
            others = (
                (value * 2, value // 2)
                if value > 8
                else (value + 1, value - 1)
                if value > 1
                else (value + 1,)
            )
            for other in others:
                self.add("constant", node, f"({other})")
        elif isinstance(value, float) and value != 0.0 and abs(value) != float("inf"):
            self.add("constant", node, f"({value * 10.0!r})")
            self.add("constant", node, f"({value / 10.0!r})")

    def condition(self, node):
        self.add("condition", node.test, f"(not ({self.text(node.test)}))")
        self.generic_visit(node)

    visit_If = visit_IfExp = visit_While = condition

    def table(self, node):
        values = node.values if isinstance(node, ast.Dict) else node.elts
        if self.depth == 0 and len(values) > 2 and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            keys = node.keys if isinstance(node, ast.Dict) else [None] * len(values)
            for key, value in zip(keys, values, strict=True):
                begin = self.span(key if key is not None else value)[0]
                stop = self.span(value)[1]
                comma = re.match(rb"\s*,", self.source[stop:])
                if comma and self.source[begin - 2 : begin] != b"**":
                    self.add(
                        "table",
                        key if key is not None else value,
                        "",
                        f"dropped: {_short(self.source[begin:stop].decode())}",
                        (begin, stop + comma.end()),
                    )
        self.generic_visit(node)

    visit_Tuple = visit_List = visit_Set = visit_Dict = table


def _short(text):
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def _types_only(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _says_something(node):
    """Docstrings and other bare strings, warnings, the names a module exports."""
    if isinstance(node, ast.Expr):
        call = node.value
        return isinstance(call, ast.Constant) or (
            isinstance(call, ast.Call) and ast.unparse(call.func).endswith("warn")
        )
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("__")


def _depends(first, second):
    """Whether their order may matter: one writes a name the other mentions, or both are calls made for
    what they do."""
    if isinstance(first, ast.Expr) and isinstance(second, ast.Expr):
        return isinstance(first.value, ast.Call) and isinstance(second.value, ast.Call)
    names = [{n.id for n in ast.walk(s) if isinstance(n, ast.Name)} for s in (first, second)]
    written = [_written(s) for s in (first, second)]
    return bool(written[0] & names[1] or written[1] & names[0])


def _written(statement):
    """Names that a statement assigns, or whose elements or attributes it assigns."""
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    return {
        n.id for target in targets if target is not None for n in ast.walk(target) if isinstance(n, ast.Name)
    }


def source_files(root=ROOT):
    """Names of the tracked files, or in a copy without git of all that neither Python nor pip made."""
    if (root / ".git").exists():
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=root, text=True)
        return [name for name in listed.split("\0") if name and (root / name).is_file()]
    made = re.compile(r"\.(?!ci$)|__pycache__$|build$|dist$|.*\.egg-info$")
    found = []
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if not made.match(name)]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files]
    return sorted(found)


def _plain(code):
    """What code compiles to, without positions, to compare."""
    if isinstance(code, types.CodeType):
        return (
            code.co_name,
            code.co_code,
            code.co_names,
            code.co_varnames,
            tuple(map(_plain, code.co_consts)),
        )
    return (type(code).__name__, repr(code))


def changes_something(fault, source):
    try:
        return _plain(compile(source, fault.path, "exec")) != _plain(
            compile(fault.planted(source), fault.path, "exec")
        )
    except (SyntaxError, ValueError):
        return False


@cache
def candidates(only=()):
    """{folder: {kind: faults}} of the packages' files, in the order of their names."""
    found = {}
    for name in sorted(source_files()):
        path = Path(name)
        wanted = not only or any(name == place or name.startswith(place.rstrip("/") + "/") for place in only)
        if path.parts[0] not in PACKAGES or path.suffix != ".py" or path.name == "__init__.py" or not wanted:
            continue
        for fault in Finder(name, (ROOT / name).read_bytes()).faults:
            found.setdefault(str(path.parent), {}).setdefault(fault.kind, []).append(fault)
    return found


def draw(count, seed, only=(), usable=lambda fault: True):
    """Faults 0 to count - 1 of a seed: folders in turn, then kinds in turn, then any place. Those that are
    not `usable` are drawn again."""
    found = candidates(tuple(only))
    folders = sorted(found)
    random.Random(f"{seed} folders").shuffle(folders)
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        folder = found[folders[number % len(folders)]]
        kinds = sorted(folder)
        kind = kinds[(number // len(folders) + number) % len(kinds)]
        pool = list(folder[kind])
        rng.shuffle(pool)
        for fault in pool:
            if changes_something(fault, (ROOT / fault.path).read_bytes()) and usable(fault):
                yield number, fault
                break


class Workplace:
    """Copies of the source files, and processes that import the packages from there."""

    def __init__(self, folder, patience):
        self.folder, self.patience = Path(folder), patience

    def copy(self, fault=None):
        """The path of a new copy with the fault planted."""
        place = Path(tempfile.mkdtemp(dir=self.folder)) / "tree"  # beside it lie the log and compiled code
        for name in source_files():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
            (place / name).chmod(
                (place / name).stat().st_mode | 0o200
            )  # of a checkout that may be read-only
        if fault is not None:
            (place / fault.path).write_bytes(fault.planted((ROOT / fault.path).read_bytes()))
        return place

    def environment(self, place, fault):
        # Compiled code is shared by the copies in which cpu_kernels is unchanged: its state is a digest of
        # the sources.
        own = fault is not None and fault.path.startswith("cpu_kernels")
        cache = (place.parent if own else self.folder) / "code-cache"
        return os.environ | {
            "PYTHONPATH": str(place),
            "CPU_KERNELS_CACHE_DIR": str(cache),
            "PYTHON": sys.executable,
        }

    def imports(self, fault):
        """Whether the faulty module can be imported."""
        place = self.copy(fault)
        module = fault.path.removesuffix(".py").replace("/", ".")
        try:
            done = subprocess.run(
                [sys.executable, "-c", f"import refattn, cpu_kernels, {module}"],
                cwd=place,
                env=self.environment(place, fault),
                capture_output=True,
                timeout=self.patience,
            )
            return done.returncode == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            shutil.rmtree(place.parent)

    def noticed(self, place, fault, command):
        """The first test that fails, or None. The command runs until it ends or prints nothing for longer
        than the patience."""
        log = place.parent / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=place,
                env=self.environment(place, fault),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            size, since = 0, time.monotonic()
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    if log.stat().st_size != size:
                        size, since = log.stat().st_size, time.monotonic()
                    elif time.monotonic() - since > self.patience:
                        return f"no progress: {_last_line(log)}"
            finally:  # also when this script is stopped
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its own session: this process and its children
                    process.wait()
        return None if process.returncode == 0 else _first_failure(log, process.returncode)


def _last_line(log):
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing printed")


def _first_failure(log, returncode):
    text = log.read_text(errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) (.*)$", text, re.MULTILINE)
    return failed.group(1)[:160] if failed else f"exit code {returncode}: {_last_line(log)[:120]}"


def likely_tests(path):
    """Test files for a source file, those that exist in this tree; doctests of the file itself first."""
    matches = [place for place in LIKELY if path == place or path.startswith(place + "/")]
    names = [f"{name}.py" for name in LIKELY[max(matches, key=len)].split()]
    places = {Path(file).name: file for file in source_files()}
    own = [path] if path.startswith("refattn/") else []
    return own + [places[name] for name in names if name in places]


def commands(stage, path):
    """The commands of a stage for a fault in the file `path`; a stage leaves out what those before it
    ran."""
    pytest = [sys.executable, "-m", "pytest", "-x", "-v", "--tb=line", "-p", "no:cacheprovider"]
    likely = likely_tests(path)
    if stage == "likely":
        return [[*pytest, *likely]]
    if stage == "readme":
        return [[*pytest, *(f"--ignore={name}" for name in likely)]]
    return [
        [".ci/campaigns", "--share", "10", "--no-faults"],
        ["tests/kernel_builds.sh", "bounds", "interpreted"],
    ]


def judge(workplace, fault, last_stage, known):
    """Run the stages that are not yet known, until one notices."""
    result = known
    place = workplace.copy(fault)
    try:
        for stage in STAGES[len(result["passed"]) : STAGES.index(last_stage) + 1]:
            started = time.monotonic()
            found = next(
                filter(
                    None,
                    (workplace.noticed(place, fault, command) for command in commands(stage, fault.path)),
                ),
                None,
            )
            result["seconds"] += round(time.monotonic() - started, 1)
            if found:
                return result | {"found_by": found, "stage": stage}
            result["passed"].append(stage)
        return result
    finally:
        shutil.rmtree(place.parent)


def key(seed, number, fault):
    return [seed, number, fault.path, fault.kind, fault.what]


def read_results(path):
    """The last line about each fault counts."""
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line]
    return {json.dumps(line["key"]): line for line in lines}


def table(results):
    lines = [f"{'fault':9s} {'place':48s} {'stage':7s} change / found by"]
    for result in results:
        _, _, path, kind, what = result["key"]
        place, stage = f"{path}:{result['line']}", result["stage"] or "-"
        lines.append(f"{kind:9s} {place:48s} {stage:7s} {what}")
        lines.append(f"{'':66s} {result['found_by'] or 'SURVIVED ' + ', '.join(result['passed'])}")
    found = [result for result in results if result["found_by"]]
    counts = ", ".join(f"{sum(result['stage'] == stage for result in found)} by {stage}" for stage in STAGES)
    return "\n".join([*lines, f"{len(results)} faults, {len(found)} found ({counts})"])


def clean(workplace, last_stage):
    """Every test that a fault may meet, on the tree as it is: what fails here notices nothing."""
    files = sorted({name for path in LIKELY for name in likely_tests(path) if name.startswith("tests/")})
    place = workplace.copy()
    try:
        pytest = commands("likely", "refattn")[0][: -len(likely_tests("refattn"))]
        everything = (
            [[*pytest, *files]]
            if last_stage == "likely"
            else [pytest, *(commands("whole", "refattn") if last_stage == "whole" else [])]
        )
        failed = [found for command in everything if (found := workplace.noticed(place, None, command))]
    finally:
        shutil.rmtree(place.parent)
    print("\n".join(failed) or "no fault, and all tests pass")
    return bool(failed)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", default="0")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATH",
        help="faults in this file or folder; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="print the faults without running a test")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="keep results here, and do not repeat those it holds"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="without output after which tests are said to hang",
    )
    parser.add_argument(
        "--least",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="of the faults, rounded down, that must be found (default 0.9)",
    )
    parser.add_argument("--clean", action="store_true", help="run the tests on the tree without a fault")
    parser.add_argument("--readme", dest="stage", action="store_const", const="readme", default="likely")
    parser.add_argument("--whole", dest="stage", action="store_const", const="whole")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    known, results = read_results(arguments.resume), []
    with tempfile.TemporaryDirectory(prefix="planted-faults-") as folder:
        workplace = Workplace(folder, arguments.patience)
        if arguments.clean:
            return clean(workplace, arguments.stage)
        checked = {tuple(line["key"][2:]) for line in known.values()}

        def usable(fault):
            return tuple(key(None, None, fault)[2:]) in checked or workplace.imports(fault)

        for number, fault in draw(arguments.count, arguments.seed, arguments.only, usable):
            if arguments.list:
                print(f"{number:3d} {fault.kind:9s} {fault.path}:{fault.line}: {fault.what}", flush=True)
                continue
            name = key(arguments.seed, number, fault)
            result = known.get(
                json.dumps(name),
                {
                    "key": name,
                    "line": fault.line,
                    "found_by": None,
                    "stage": None,
                    "passed": [],
                    "seconds": 0.0,
                },
            )
            if not result["found_by"] and len(result["passed"]) <= STAGES.index(arguments.stage):
                result = judge(workplace, fault, arguments.stage, result)
                if arguments.resume:
                    with arguments.resume.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                found = result["found_by"] or "survived"
                print(
                    f"{number:3d} {fault.path}:{fault.line}: {found} ({result['seconds']:.0f} s)", flush=True
                )
            results.append(result)
    if results:
        print(table(results))
    return sum(bool(result["found_by"]) for result in results) < int(arguments.least * len(results))


if __name__ == "__main__":
    sys.exit(main())
