"""A pytest plugin for tests of attention kernels.

Fixtures:

    attention_case    one call after another: the test runs once for each. `attention_case.check(kernel)` calls the kernel and judges it.
    kernel_spec       the arithmetic the kernel claims, from the marker, `--refattn-spec` or the dtype.
    refattn_check_kernel    `refattn.oracle.check_kernel` at the level and seed of the command line; it fails the test with the table.

Marker `@pytest.mark.refattn(function=..., dtype=..., spec=..., supports=..., families=..., dialect=..., head_dims=..., hides_nan=...)` chooses the
cases: those whose options the kernel supports, of the given families; its arguments mean what they mean in `check_kernel`. Options
`--refattn-level`, `--refattn-seed` and `--refattn-spec`.

Nothing is imported here but pytest, nor by the package it lies in: a test run that uses none of this pays nothing.
"""

import pytest

LEVELS = ("quick", "full")
MARKER = (
    "refattn(function, dtype, spec, supports, families, dialect, head_dims, hides_nan): "
    "which cases the fixture attention_case gives, and what the kernel claims"
)


def pytest_addoption(parser):
    group = parser.getgroup("refattn", "attention kernels")
    group.addoption("--refattn-level", choices=LEVELS, default="quick", help="how many cases attention_case gives (default: quick)")
    group.addoption("--refattn-seed", type=int, default=0, help="seed of their inputs (default: 0)")
    group.addoption("--refattn-spec", default=None, metavar="SPEC", help="arithmetic the kernels claim, such as bfloat16 or 'eager float16'")


def pytest_configure(config):
    config.addinivalue_line("markers", MARKER)


def pytest_generate_tests(metafunc):
    if "attention_case" in metafunc.fixturenames:
        from refattn.oracle.harness.pytest_cases import parametrize

        problem = parametrize(metafunc)
        if problem:
            pytest.fail(f"{metafunc.function.__name__}: {problem}", pytrace=False)


@pytest.fixture
def attention_case(request):
    """An `AttentionCase`: arrays and options of one call, and `check`."""
    return request.param.of(request.node)


@pytest.fixture
def kernel_spec(request):
    """The `KernelSpec` of the marker, of `--refattn-spec`, or of a fused kernel in the marker's dtype."""
    from refattn.oracle.harness.pytest_cases import settings_of

    return settings_of(request.node, request.config).spec


@pytest.fixture
def refattn_check_kernel(request):
    """`check_kernel(kernel, **options)` at the level and seed of the command line; fails the test with the table."""
    from refattn.oracle.harness.pytest_cases import harness

    return harness(request)
