"""The pytest plugin: fixtures, options, markers, messages; and the example project that uses it."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np  # noqa: F401  (pytester forgets modules that a run in this process imports first, and NumPy cannot be imported twice)
import pytest

pytest_plugins = ["pytester"]
PROJECT = Path(__file__).parents[3] / "examples" / "pytest_project"

KERNELS = """
import numpy as np, pytest, refattn
from refattn.oracle.mistakes.mutants import correct_kernel

def right(query, key, value, **options):
    return correct_kernel()(query, key, value, **options)

def top_left(query, key, value, **options):
    return correct_kernel()(query, key, value, **{**options, "q_offset": 0})
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on one file with the plugin alone, as if nothing else were installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def inner(text, *arguments):
        pytester.makepyfile(KERNELS + text)
        return pytester.runpytest_inprocess("-p", "refattn.pytest_plugin", "--strict-markers", *arguments)

    return inner


def test_loading_the_plugin_imports_pytest_only():
    code = (
        "import sys, refattn.pytest_plugin; print(sorted(name for name in sys.modules if "
        "name.split('.')[0] in ('numpy', 'refattn')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT.parents[1]
    )
    assert done.stdout.strip() == "['refattn', 'refattn._version', 'refattn.pytest_plugin']"


@pytest.mark.parametrize(
    "name", ["attention_case", "kernel_spec", "refattn_case", "refattn_kernel_spec", "refattn_check_kernel"]
)
def test_a_projects_own_names_are_left_alone(run, name):
    """Parametrised alone or with others, by a decorator or a hook, or fixtures of its own: neither
    renamed nor run once for each of our cases.
    """
    result = run(
        """
@pytest.mark.parametrize("NAME", [1, 2])
def test_alone(NAME):
    assert NAME in (1, 2)

@pytest.mark.parametrize("other, NAME", [(1, 2), (2, 3)])
def test_together(NAME, other):
    assert NAME == other + 1

@pytest.mark.parametrize(argnames=["NAME"], argvalues=[[5]])
def test_keywords(NAME):
    assert NAME == 5

class TestFixture:
    @pytest.fixture(params=[6, 7])
    def NAME(self, request):
        return request.param

    def test_fixture(self, NAME):
        assert NAME in (6, 7)
""".replace("NAME", name),
        "-p",
        "no:cacheprovider",
    )
    assert result.ret == 0 and result.parseoutcomes()["passed"] == 7


def test_the_plugin_adds_names_with_its_prefix_only(run):
    """Fixtures, options and markers, as pytest lists them with the plugin and without."""
    import _pytest.config

    from refattn import pytest_plugin

    with_it, without = _pytest.config.get_config([]), _pytest.config.get_config([])
    with_it.pluginmanager.register(pytest_plugin)
    options = [
        {name for group in config._parser._groups for option in group.options for name in option.names()}
        for config in (with_it, without)
    ]
    names = ("level", "seed", "spec", "device", "seconds", "resume")
    assert options[0] - options[1] == {f"--refattn-{name}" for name in names}
    fixtures = run("", "--fixtures", "-q").outlines
    ours = [line.split()[0] for line in fixtures if "pytest_plugin.py" in line and not line.startswith("-")]
    assert len(ours) == 3 and all(name.startswith("refattn_") for name in ours), ours
    assert [line for line in run("", "--markers").outlines if "refattn" in line] == [
        f"@pytest.mark.{pytest_plugin.MARKER}"
    ]


def test_a_fixture_that_extends_ours_still_runs_once_a_case(run):
    result = run(
        """
@pytest.fixture
def refattn_case(refattn_case):
    return refattn_case.name

@pytest.mark.refattn(supports={"causal"}, families={"one-hot", "ascending"})
def test_kernel(refattn_case):
    assert isinstance(refattn_case, str)
"""
    )
    assert result.ret == 0 and result.parseoutcomes()["passed"] == 3


@pytest.mark.parametrize(
    "option, words",
    [
        ("--refattn-seed=-1", "argument --refattn-seed: must be an integer of 0 or more; got '-1'"),
        ("--refattn-seed=1.5", "argument --refattn-seed: must be an integer of 0 or more; got '1.5'"),
        ("--refattn-seed=many", "argument --refattn-seed: must be an integer of 0 or more; got 'many'"),
        ("--refattn-level=slow", "argument --refattn-level: invalid choice: 'slow'"),
        ("--refattn-spec=nonsense", "--refattn-spec: spec must be"),
    ],
)
def test_wrong_options_are_named(run, option, words):
    result = run("\ndef test_kernel(refattn_case):\n    pass\n", option)
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    assert words in "\n".join(result.outlines + result.errlines)


def test_importing_the_package_before_pytest_warns_of_nothing(tmp_path):
    """pytest rewrites the assertions of every package installed together with a plugin and warns of
    those imported already, here an error.
    """
    site = tmp_path / "site"
    shutil.copytree(
        PROJECT.parents[1] / "refattn",
        site / "refattn",
        ignore=shutil.ignore_patterns("__pycache__", "*.npz"),
    )
    shutil.copytree(
        PROJECT.parents[1] / "cpu_kernels",
        site / "cpu_kernels",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    facts = site / "refattn-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: refattn\nVersion: 0.1.0\n")
    (facts / "entry_points.txt").write_text("[pytest11]\nrefattn = refattn.pytest_plugin\n")
    (facts / "RECORD").write_text(
        "refattn/__init__.py,,\ncpu_kernels/__init__.py,,\nrefattn-0.1.0.dist-info/RECORD,,\n"
    )
    (tmp_path / "test_it.py").write_text("def test_it():\n    pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    code = (
        "import sys, refattn, cpu_kernels, pytest; print(refattn.__file__); sys.exit(pytest.main(['-q', "
        "'-p', 'no:cacheprovider']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0 and str(site) in done.stdout, done.stdout + done.stderr


def test_one_test_a_case(run):
    result = run(
        """
@pytest.mark.refattn(supports={"causal"}, families={"ascending", "one-hot"})
def test_kernel(refattn_case):
    assert set(refattn_case.options) <= {"causal"} and refattn_case.inputs.family in ("ascending", "one-hot")
    assert refattn_case.arrays[0].dtype == np.float32 and refattn_case.spec.name == "flash float32"
    refattn_case.check(right)
    output, lse = refattn_case.reference()
    refattn_case.check(output.astype(np.float32), lse)
""",
        "-v",
    )
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 3 and set(outcomes) <= {"passed", "warnings", "warning"}
    result.stdout.fnmatch_lines(
        ["*test_kernel[[]ascending-causal[]] PASSED*", "*test_kernel[[]one-hot-causal[]] PASSED*"]
    )


def test_a_failure_prints_report_diagnosis_and_reproduction(run):
    result = run(
        """
@pytest.mark.refattn(supports={"causal"}, families="normal")
def test_kernel(refattn_case):
    refattn_case.check(top_left)
""",
        "-k",
        "test_kernel and normal-causal and not head and not key and not row",
        "--refattn-seed",
        "4",
    )
    result.stdout.fnmatch_lines(
        [
            "*normal causal: attention: FAIL*",
            "*worst at batch*",
            "*diagnosis: *with q_offset=0 the output agrees*",
            "*reproduce: pytest '*.py::test_kernel[[]normal-causal[]]' --refattn-level quick "
            "--refattn-seed 4",
        ]
    )


def test_level_and_seed(run, pytester):
    text = """
@pytest.mark.refattn(supports=(), families={"normal"})
def test_kernel(refattn_case):
    print("first", refattn_case.arrays[0].flat[0])
"""
    quick = run(text, "-s", "-k", "normal")
    again = run(text, "-s", "-k", "normal")
    other = run(text, "-s", "-k", "normal", "--refattn-seed", "1")
    numbers = [[line for line in result.outlines if "first" in line] for result in (quick, again, other)]
    assert numbers[0] == numbers[1] != numbers[2]
    full = run(text, "--refattn-level", "full")
    assert full.parseoutcomes()["passed"] > 3 * quick.parseoutcomes()["passed"]
    assert run(text, "--refattn-level", "slow").ret == pytest.ExitCode.USAGE_ERROR


def test_the_spec_of_marker_command_line_and_dtype(run):
    text = """
def test_default(refattn_kernel_spec):
    assert refattn_kernel_spec.name == WORDS

@pytest.mark.refattn(spec="eager float16")
def test_marker(refattn_kernel_spec, refattn_case):
    assert refattn_kernel_spec.name == refattn_case.spec.name == "eager float16" and refattn_case.arrays[0].dtype == np.float16

@pytest.mark.refattn(dtype="float64")
class TestClass:
    def test_dtype(self, refattn_kernel_spec):
        assert refattn_kernel_spec.name == WORDS.replace("float32", "float64") or WORDS == "eager float32"
"""
    assert (
        run(
            'WORDS = "flash float32"\n' + text, "-k", "default or dtype or (marker and one-key-takes-all)"
        ).ret
        == 0
    )
    assert (
        run(
            'WORDS = "eager float32"\n' + text, "--refattn-spec", "eager float32", "-k", "default or dtype"
        ).ret
        == 0
    )


def test_not_implemented_is_a_skip_and_damage_a_failure(run):
    result = run(
        """
def later(query, key, value, **options):
    raise NotImplementedError("no GPU here")

def careless(query, key, value, **options):
    query[...] = 0
    return right(query, key, value, **options)

@pytest.mark.refattn(supports={"kv_lengths"}, families="uniform")
def test_skip(refattn_case):
    refattn_case.check(later)

@pytest.mark.refattn(supports={"mask"}, families="poison")
def test_damage(refattn_case):
    refattn_case.check(careless)
""",
        "-rs",
    )
    result.stdout.fnmatch_lines(["*query was changed*", "*no GPU here*"])
    assert result.parseoutcomes() == {"failed": 1, "skipped": 1}


def test_other_forms_and_dialects(run):
    result = run(
        """
from refattn.oracle.dialects.results import result_from_ours
from refattn.oracle.dialects.translate import to_ours

@pytest.mark.refattn(function="paged_attention", supports={"causal"})
def test_paged(refattn_case):
    refattn_case.check(refattn.paged_attention_with_lse)

@pytest.mark.refattn(dialect="flash_attn", supports={"causal", "window"}, families="normal")
def test_dialect(refattn_case):
    def kernel(**call):
        _, arrays, options = to_ours("flash_attn", **call)
        return result_from_ours("flash_attn", *refattn.attention_with_lse(*arrays, **options))
    refattn_case.check(kernel)
""",
        "-k",
        "test_paged or window",
    )
    outcomes = result.parseoutcomes()
    assert "failed" not in outcomes and outcomes["passed"] > 3


def test_kernels_for_one_head_size_that_let_nan_through(run):
    result = run(
        """
def kernel(query, key, value, causal=False, mask=None):
    assert query.shape[-1] == 64 and value.shape[-1] == 32 and np.isfinite(value).all()
    return right(query, key, value, causal=causal, mask=mask)

@pytest.mark.refattn(supports={"causal", "mask"}, families={"normal", "poison"}, head_dims=(64, 32), hides_nan=False)
class TestKernel:
    def test_cases(self, refattn_case):
        refattn_case.check(kernel)

    def test_harness(self, refattn_check_kernel):
        refattn_check_kernel(kernel, only="poison")

@pytest.mark.refattn(head_dims=0)
def test_wrong(refattn_check_kernel):
    refattn_check_kernel(kernel)
"""
    )
    outcomes = result.parseoutcomes()
    assert (
        outcomes["failed"] == 1
        and outcomes["passed"] > 20
        and "head_dims must be" in "\n".join(result.outlines)
    )


def test_the_harness_fixture(run):
    result = run(
        """
@pytest.mark.refattn(supports={"causal"})
def test_right(refattn_check_kernel):
    assert refattn_check_kernel(right, only="strides").settings["level"] == "quick"

def test_wrong(refattn_check_kernel):
    refattn_check_kernel(top_left, supports={"causal"}, only="reference: normal causal", diagnose=False)
"""
    )
    assert result.parseoutcomes()["passed"] == 1 and result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(
        [
            "*FAIL reference: normal causal*",
            "*reproduce: pytest *.py::test_wrong --refattn-level quick --refattn-seed 0",
        ]
    )


def test_arrays_of_torch(pytester, monkeypatch):
    """In processes of their own: torch cannot be loaded twice, and `pytester` forgets what its tests load."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    text = """
import torch

@pytest.mark.refattn(arrays="torch", supports={"causal"}, families="one-hot", spec="float16")
def test_kernel(refattn_case, refattn_check_kernel):
    def kernel(query, key, value, causal=False):
        if causal:
            raise NotImplementedError("no causal")
        assert query.dtype == torch.float16 and query.device.type == "cpu"
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1).float() for x in (key, value))
        scores = query.float() @ key.mT / query.shape[-1] ** 0.5
        return (scores.softmax(-1) @ value).half()

    refattn_case.check(kernel)
    assert refattn_check_kernel(kernel, only="reference: normal", seconds=1.0).settings["arrays"] == "torch"
"""
    pytester.makepyfile(KERNELS + text)
    run = lambda device: pytester.runpytest_subprocess(
        "-p", "refattn.pytest_plugin", "--refattn-device", device
    )
    assert run("cpu").ret == 0
    result = run("abacus")
    assert "device must be a device of torch" in "\n".join(result.outlines)


@pytest.mark.parametrize(
    "marker, words",
    [
        ("arrays='cupy'", "arrays must be one of numpy, torch, jax, mlx"),
        ("'quick'", "keyword arguments only"),
        ("color='red'", "got 'color'"),
        ("families='nonsense'", "must leave a case to run"),
        ("function='conv'", "function must be one of"),
    ],
)
def test_wrong_markers(run, marker, words):
    result = run(f"\n@pytest.mark.refattn({marker})\ndef test_kernel(refattn_case):\n    pass\n")
    assert result.ret == pytest.ExitCode.INTERRUPTED and words in "\n".join(result.outlines)


def reproduced(result):
    """Arguments of the pytest command that a failure prints."""
    line = next(line for line in result.outlines if "reproduce: pytest " in line)
    return shlex.split(line.partition("reproduce: pytest ")[2])


def test_the_example_project(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for path in PROJECT.iterdir():
        if path.suffix in (".py", ".ini"):
            shutil.copyfile(path, pytester.path / path.name)
    result = pytester.runpytest_inprocess("-p", "refattn.pytest_plugin")
    outcomes = result.parseoutcomes()
    assert "failed" not in outcomes and "skipped" not in outcomes and outcomes["passed"] > 30
    broken = pytester.runpytest_inprocess("-p", "refattn.pytest_plugin", "-x", "caught.py")
    broken.stdout.fnmatch_lines(
        [
            "*FAIL: errors of up to*hard, tight*",
            "*diagnosis: the last tile is padded with zero keys*to do: hide keys past kv_len*",
        ]
    )
    assert broken.parseoutcomes()["failed"] == 1
    again = pytester.runpytest_inprocess("-p", "refattn.pytest_plugin", *reproduced(broken))
    assert again.parseoutcomes() == {"failed": 1} and reproduced(again) == reproduced(broken)


def test_the_command_that_reproduces_a_failure_does_so_from_a_subdirectory(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]")
    deeper = pytester.mkdir("some where")
    (deeper / "test_it.py").write_text(
        KERNELS
        + """
@pytest.mark.refattn(supports={"causal"}, families="normal")
def test_kernel(refattn_case):
    refattn_case.check(top_left)
"""
    )
    monkeypatch.chdir(deeper)
    options = ("--refattn-seed", "4", "--refattn-spec", "eager float16")
    failed = pytester.runpytest_inprocess("-p", "refattn.pytest_plugin", "-x", *options)
    assert (
        reproduced(failed)[0].startswith("test_it.py::test_kernel[")
        and reproduced(failed)[-1] == "eager float16"
    )
    again = pytester.runpytest_inprocess("-p", "refattn.pytest_plugin", *reproduced(failed))
    assert again.parseoutcomes() == {"failed": 1} and reproduced(again) == reproduced(failed)
    monkeypatch.chdir(pytester.path)
    outside = pytester.runpytest_inprocess("-p", "refattn.pytest_plugin", "-x", *options)
    assert reproduced(outside)[0].startswith("some where/test_it.py::test_kernel[")


def test_a_given_time_and_a_directory_to_go_on_from(run, pytester):
    text = """
def test_merges(refattn_check_kernel):
    def kernel(outputs, lses):
        return refattn.merge_states(outputs, lses)
    report = refattn_check_kernel(kernel, function="merge_states", spec="float64", only="reference")
    print("outcomes", len(report.outcomes), "not run", len(report.not_run))
    refattn_check_kernel(kernel, function="merge_states", spec="float64", only="strides: padded")
"""
    arguments = text, "-s", "--refattn-resume", "tables"
    first = run(*arguments, "--refattn-seconds", "600")
    assert first.parseoutcomes() == {"passed": 1}
    tables = sorted((pytester.path / "tables").iterdir())
    assert len(tables) == 2 and all(table.suffix == ".jsonl" for table in tables)
    before = [table.read_text() for table in tables]
    assert run(*arguments).parseoutcomes() == {"passed": 1}
    assert [table.read_text() for table in tables] == before
    assert "must be a number above 0" in "\n".join(run(text, "--refattn-seconds", "no").errlines)
