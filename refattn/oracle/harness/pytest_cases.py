"""What the pytest plugin does once a test asks for it."""

from __future__ import annotations

import itertools
import os
import shlex
from dataclasses import dataclass, replace

import numpy as np

from refattn.calls.registry import form_called
from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.harness.array_libraries import NumpyArrays, array_library
from refattn.oracle.harness.bench import rows_to_judge
from refattn.oracle.harness.callables import KernelCall, Unsupported
from refattn.oracle.harness.head_sizes import checked_head_dims
from refattn.oracle.harness.input_dtype import input_dtype
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.inputs.of_form import inputs_of
from refattn.oracle.inputs.tiles import checked_tile
from refattn.oracle.inputs.variants import held_in, with_numbers
from refattn.oracle.verdict.check import check

DIAGNOSIS_SECONDS = 10.0
MARKER_ARGUMENTS = (
    "function",
    "dtype",
    "spec",
    "supports",
    "families",
    "dialect",
    "head_dims",
    "hides_nan",
    "tile",
    "arrays",
    "device",
)


@dataclass
class Settings:
    """What marker and command line say together."""

    function: str
    dtype: np.dtype
    spec: KernelSpec
    supports: frozenset
    families: frozenset | None
    dialect: str
    head_dims: object
    hides_nan: bool
    tile: object
    library: NumpyArrays
    stored: np.dtype | None  # the 8-bit dtype of the kernel's arrays
    level: str
    seed: int


def settings_of(node, config) -> Settings:
    """The closest marker's arguments over the command line over the defaults.

    Raises
    ------
    TypeError, ValueError
        The marker has unknown arguments, or values that mean nothing.
    """
    given = {}
    for marker in reversed(list(node.iter_markers("refattn"))):
        if marker.args:
            raise TypeError(f"refattn must have keyword arguments only; got {marker.args!r}.")
        given |= marker.kwargs
    unknown = {*given} - {*MARKER_ARGUMENTS}
    if unknown:
        raise TypeError(
            f"refattn must have arguments of {', '.join(MARKER_ARGUMENTS)}; got {sorted(unknown)[0]!r}."
        )
    spec = given.get("spec", _spec_of_the_command_line(config))
    arrays = given.get("arrays", "numpy")
    device = given.get("device")
    if device is None and arrays != "numpy":
        device = config.getoption("--refattn-device")
    library = array_library(arrays, device)
    dtype, stored = input_dtype(given.get("dtype"), spec, arrays)
    library.check_dtype(stored or dtype)
    families = given.get("families")
    return Settings(
        given.get("function", "attention"),
        dtype,
        kernel_spec(spec, stored or dtype),
        frozenset(given.get("supports", form_called(given.get("function", "attention")).arguments)),
        None if families is None else frozenset([families] if isinstance(families, str) else families),
        given.get("dialect", "refattn"),
        given.get("head_dims"),
        given.get("hides_nan", True),
        given.get("tile"),
        library,
        stored,
        config.getoption("--refattn-level"),
        config.getoption("--refattn-seed"),
    )


def _spec_of_the_command_line(config):
    words = config.getoption("--refattn-spec")
    try:
        return None if words is None else kernel_spec(words)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--refattn-spec: {error}") from error


def parametrize(metafunc) -> str:
    """One test a case, named after it; what is wrong with the marker, or empty."""
    try:
        chosen, settings = _chosen(metafunc.definition, metafunc.config)
    except (ImportError, TypeError, ValueError) as error:
        return str(error)
    metafunc.parametrize(
        "refattn_case",
        [AttentionCase(case, settings) for case in chosen],
        ids=[_id(case.name) for case in chosen],
        indirect=True,
    )
    return ""


def _chosen(node, config):
    settings = settings_of(node, config)
    call = KernelCall(lambda **options: None, settings.function, settings.dialect, settings.supports)
    if call.form.joins:
        raise ValueError(
            f"function must compute attention; got {settings.function!r}. refattn_check_kernel takes merge "
            "kernels."
        )
    dtype, seed, of_form = settings.dtype, settings.seed, inputs_of(call.form)
    tiles = checked_tile(settings.tile)
    inputs = [*of_form.cases(dtype, seed, settings.level, call, tiles), *of_form.exact(dtype, seed)]
    inputs = inputs if settings.hides_nan else map(with_numbers, inputs)
    inputs = checked_head_dims(settings.head_dims, call).of_cases(inputs)
    inputs = (held_in(case, settings.stored) for case in inputs)
    chosen = [
        case
        for case in inputs
        if not call.unsupported(case.options)
        and (settings.families is None or case.family in settings.families)
    ]
    if not chosen:
        raise ValueError(
            f"families and supports must leave a case to run; got families={settings.families}, "
            f"supports={sorted(settings.supports)}."
        )
    return chosen, settings


def _id(name):
    return "-".join("".join(c if c.isalnum() or c == "_" else " " for c in name).split())


def reproduction(node, settings) -> str:
    """The command that runs a test again, from the directory where pytest was started."""
    file = os.path.relpath(node.path, node.config.invocation_params.dir)
    words = [
        "pytest",
        "::".join([file, *node.nodeid.split("::")[1:]]),
        "--refattn-level",
        settings.level,
        "--refattn-seed",
        str(settings.seed),
    ]
    spec = node.config.getoption("--refattn-spec")
    words += [] if spec is None else ["--refattn-spec", spec]
    device = node.config.getoption("--refattn-device")
    return shlex.join(words if device is None else [*words, "--refattn-device", device])


@dataclass(repr=False)
class AttentionCase:
    """One call a kernel is tested with."""

    inputs: AttentionInputs
    settings: Settings
    reproduction: str = ""  # the command that runs this test again

    def of(self, node):
        return replace(self, reproduction=reproduction(node, self.settings))

    def __repr__(self):
        shapes = ", ".join(f"{array.dtype.name} {array.shape}" for array in self.arrays)
        return f"<AttentionCase {self.name}: {shapes}>"

    @property
    def name(self) -> str:
        return self.inputs.name

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Positional arrays of the function: query, key, value for attention."""
        return self.inputs.arrays

    @property
    def options(self) -> dict:
        """Keyword options, as `refattn` spells them."""
        return dict(self.inputs.options)

    @property
    def spec(self) -> KernelSpec:
        return self.settings.spec

    def reference(self):
        """Output and lse in float64, by `refattn`."""
        import refattn

        return getattr(refattn, form_called(self.settings.function).with_lse)(*self.arrays, **self.options)

    def check(self, kernel_or_output, lse=None) -> None:
        """Judge a kernel, called with guarded copies of the inputs in the dialect of the marker, or a
        result.

        Raises
        ------
        AssertionError
            With the report, a diagnosis and one line that runs this test again.
        pytest.skip.Exception
            When the kernel raises NotImplementedError.
        """
        __tracebackhide__ = True
        output, damage = kernel_or_output, []
        if callable(kernel_or_output) and not hasattr(kernel_or_output, "__array__"):
            try:
                settings = self.settings
                called = settings.function, settings.dialect, settings.supports, settings.library
                call = KernelCall(kernel_or_output, *called, settings.stored)
                result = call(self.arrays, self.options)
            except Unsupported as reason:
                import pytest

                pytest.skip(str(reason))
            output, lse, damage = result.output, result.lse, result.damage
        report = check(
            output,
            *self.arrays,
            lse=lse,
            spec=self.spec,
            function=self.settings.function,
            rows=rows_to_judge(self.inputs, checked_tile(self.settings.tile), self.settings.seed),
            **self.options,
        )
        if damage or not report.passed:
            raise AssertionError("\n".join(self._message(report, output, lse, damage)))

    def _message(self, report, output, lse, damage):
        yield f"{self.name}: {'; '.join(damage) or report.text()}"
        if not damage:
            yield f"diagnosis: {self._diagnosis(output, lse)}"
        if self.reproduction:
            yield f"reproduce: {self.reproduction}"

    def _diagnosis(self, output, lse):
        from refattn.oracle.diagnosis.search import diagnose

        try:
            return diagnose(
                output, *self.arrays, lse=lse, spec=self.spec, seconds=DIAGNOSIS_SECONDS, **self.options
            )
        except (TypeError, ValueError) as error:
            return f"none: {error}"


def _table_of(request, call):
    """The file of a call of the harness, in the directory of `--refattn-resume`."""
    directory = request.config.getoption("--refattn-resume")
    if directory is None:
        return None
    os.makedirs(directory, exist_ok=True)
    number = "" if call == 1 else f"-{call}"
    return os.path.join(directory, f"{_id(request.node.nodeid)}{number}.jsonl")


def harness(request):
    """`check_kernel` with the settings of a test."""
    calls = itertools.count(1)

    def run(kernel, **options):
        __tracebackhide__ = True
        from refattn.oracle.harness.check_kernel import check_kernel

        settings = settings_of(request.node, request.config)
        defaults = {
            "function": settings.function,
            "dialect": settings.dialect,
            "spec": settings.spec,
            "dtype": settings.stored or settings.dtype,
            "arrays": settings.library.name,
            "device": settings.library.device_name,
            "head_dims": settings.head_dims,
            "hides_nan": settings.hides_nan,
            "tile": settings.tile,
            "level": settings.level,
            "seed": settings.seed,
            "seconds": request.config.getoption("--refattn-seconds"),
            "resume": _table_of(request, next(calls)),
        }
        report = check_kernel(kernel, **{**defaults, **options})
        if not report.passed:
            raise AssertionError(f"{report.text()}\nreproduce: {reproduction(request.node, settings)}")
        return report

    return run
