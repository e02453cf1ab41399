"""A pytest plugin for tests of attention kernels.

Fixtures:

    refattn_case            one call after another, a test for each; `refattn_case.check(kernel)` judges it.
    refattn_kernel_spec     the arithmetic the kernel claims, from the marker, `--refattn-spec` or the dtype.
    refattn_check_kernel    `refattn.oracle.check_kernel` at the level and seed given; fails with its table.

Marker `@pytest.mark.refattn(function=..., dtype=..., spec=..., supports=..., families=..., dialect=...,
head_dims=..., hides_nan=..., tile=..., arrays=..., device=...)` chooses the cases: those whose options the
kernel supports, of the given families; its arguments mean what they mean in `check_kernel`. Options
`--refattn-level`, `--refattn-seed`, `--refattn-spec` and `--refattn-device`; of `refattn_check_kernel`,
`--refattn-seconds` and `--refattn-resume`.

A project that uses none of this is left as it is: every name begins with `refattn`, a test that
parametrises one of these names itself, or a fixture of its own by that name, comes first, and nothing is
imported here but pytest, nor by the package it lies in.

PYTEST_DONT_REWRITE (see `refattn`)
"""

import argparse

import pytest

LEVELS = ("quick", "full")
MARKER = (
    "refattn(function, dtype, spec, supports, families, dialect, head_dims, hides_nan, tile, arrays, "
    "device): which cases the fixture refattn_case gives, and what the kernel claims"
)


def pytest_addoption(parser):
    group = parser.getgroup("refattn", "attention kernels")
    group.addoption(
        "--refattn-level",
        choices=LEVELS,
        default="quick",
        help="how many cases refattn_case gives (default: quick)",
    )
    group.addoption(
        "--refattn-seed", type=seed, default=0, help="seed of their inputs, 0 or more (default: 0)"
    )
    group.addoption(
        "--refattn-spec",
        default=None,
        metavar="SPEC",
        help="arithmetic the kernels claim, such as bfloat16 or 'eager float16'",
    )
    group.addoption(
        "--refattn-device",
        default=None,
        metavar="DEVICE",
        help="where the arrays of tests lie whose marker has arrays=, such as cuda (default: where their "
        "library puts them)",
    )
    group.addoption(
        "--refattn-seconds",
        type=seconds,
        default=None,
        help="seconds after which a call of refattn_check_kernel starts no test; it begins with those that "
        "find most for their cost (default: all tests)",
    )
    group.addoption(
        "--refattn-resume",
        default=None,
        metavar="DIRECTORY",
        help="where each call of refattn_check_kernel writes its outcomes as they come, and goes on from "
        "those it finds",
    )


def seed(text):
    """The option's value; pytest puts the option's name before the message."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of 0 or more; got {text!r}")
    return int(text)


def seconds(text):
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text!r}")
    return number


def pytest_configure(config):
    config.addinivalue_line("markers", MARKER)


def pytest_generate_tests(metafunc):
    if _gives_case(metafunc):
        from refattn.oracle.harness.pytest_cases import parametrize

        problem = parametrize(metafunc)
        if problem:
            pytest.fail(f"{metafunc.function.__name__}: {problem}", pytrace=False)


def _gives_case(metafunc):
    """Whether the test takes its `refattn_case` from this file: not from its own parametrize, nor
    from a fixture of the project by that name.
    """
    # Only this private table tells; a name that the test itself parametrises is not in it.
    for fixture in reversed(metafunc._arg2fixturedefs.get("refattn_case", ())):
        if fixture.func.__module__ == __name__:
            return True
        # a fixture that asks for its own name extends the one before it
        if "refattn_case" not in fixture.argnames:
            return False
    return False


@pytest.fixture
def refattn_case(request):
    """An `AttentionCase`: arrays and options of one call, and `check`."""
    return request.param.of(request.node)


@pytest.fixture
def refattn_kernel_spec(request):
    """The `KernelSpec` of the marker, of `--refattn-spec`, or of a fused kernel in the marker's dtype."""
    from refattn.oracle.harness.pytest_cases import settings_of

    return settings_of(request.node, request.config).spec


@pytest.fixture
def refattn_check_kernel(request):
    """`check_kernel(kernel, **options)` at the level and seed of the command line; fails the test
    with the table.
    """
    from refattn.oracle.harness.pytest_cases import harness

    return harness(request)
