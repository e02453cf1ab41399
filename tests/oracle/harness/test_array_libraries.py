"""check_kernel with arrays of torch, jax and mlx: what a kernel gets, what is seen of what it does to them, and
which errors come before any kernel is called.
"""

import subprocess
import sys

import numpy as np
import pytest

import refattn
from refattn.calls.arrays import as_array
from refattn.oracle import check_kernel
from refattn.oracle.harness.array_libraries import LIBRARIES, array_library
from refattn.oracle.harness.guards import LAYOUTS, guarded

OTHERS = {"torch": "torch", "jax": "jax", "mlx": "mlx.core"}


def library(name):
    pytest.importorskip(OTHERS[name], exc_type=ImportError)
    return array_library(name)


def never(query, key, value):
    raise RuntimeError("the kernel was called")


def recorded(seen):
    """A right kernel that notes the arrays it gets."""

    def kernel(query, key, value, *, mask=None, kv_lengths=None, alibi_slopes=None):
        named = {"mask": mask, "kv_lengths": kv_lengths, "alibi_slopes": alibi_slopes}
        given = {"query": query} | {name: x for name, x in named.items() if x is not None}
        seen.update(
            {name: (type(x).__module__.partition(".")[0], str(x.dtype)) for name, x in given.items()}
        )
        options = {name: as_array(x, name) for name, x in given.items() if name != "query"}
        return refattn.attention(query, key, value, **options).astype(np.float32)

    return kernel


# what the kernel gets


@pytest.mark.parametrize("name", OTHERS)
def test_the_kernel_gets_arrays_of_the_library(name):
    library(name)
    seen = {}
    only = [
        "reference: normal mask",
        "reference: normal lengths",
        "reference: normal alibi",
        "strides: sliced",
    ]
    report = check_kernel(recorded(seen), arrays=name, spec="float32", only=only)
    assert report.passed, report.text()
    of, kind = {"torch": ("torch", "torch."), "jax": ("jaxlib", ""), "mlx": ("mlx", "mlx.core.")}[name]
    dtypes = {"query": "float32", "mask": "bool", "kv_lengths": "int32", "alibi_slopes": "float32"}
    assert seen == {argument: (of, kind + dtype) for argument, dtype in dtypes.items()}
    assert report.settings["arrays"] == name and "cpu" in report.settings["device"]
    assert report.count("skip") == (name == "jax")  # its arrays have no strides


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_torch_tensors_have_the_dtype_of_the_spec(dtype):
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    dtypes = set()

    def kernel(query, key, value):
        dtypes.update(x.dtype for x in (query, key, value))
        query, key, value = (
            x.float().repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (query, key, value)
        )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = scores.softmax(-1)
        return (weights @ value).nan_to_num().bfloat16(), scores.logsumexp(-1)

    only = [
        "reference: normal",
        "reference: large scores",
        "exact: uniform over 16 keys",
        "strides: transposed",
    ]
    report = check_kernel(kernel, arrays="torch", spec=dtype, only=[*only, "identities: permuted keys"])
    assert report.passed and report.count("pass") >= 4, report.text()
    assert dtypes == {getattr(torch, dtype)} and report.settings["dtype"] == dtype


def test_numpy_arrays_of_8_bit_floats_are_asked_for_by_dtype():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for asked, expected in (({}, np.float32), ({"dtype": "float8_e5m2"}, ml_dtypes.float8_e5m2)):
        dtypes = set()

        def kernel(query, key, value, dtypes=dtypes):
            dtypes.add(query.dtype)
            return refattn.attention(*(x.astype(np.float32) for x in (query, key, value))).astype(np.float32)

        spec = refattn.oracle.KernelSpec.flash("float8_e5m2").replace(output="float32")
        report = check_kernel(kernel, spec=spec, only=["reference: normal"], **asked)
        assert report.passed and dtypes == {np.dtype(expected)}, report.text()


def test_dtypes_of_torch_are_dtypes_and_specs():
    torch = pytest.importorskip("torch")
    kernel = refattn.attention_with_lse
    report = check_kernel(kernel, dtype=torch.float16, spec=torch.float32, only="exact: one key")
    assert report.passed and report.settings["dtype"] == "float16" and report.spec.name == "flash float32"


@pytest.mark.parametrize("name", ["torch", "mlx"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_lie_in_memory_as_those_of_numpy(name, layout):
    there = library(name)
    if layout in there.impossible:
        pytest.skip(there.impossible[layout])
    array = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    around = guarded(array, "query", layout, there)
    np.testing.assert_array_equal(as_array(around.given, "query"), array)
    if name == "torch":
        assert [4 * stride for stride in around.given.stride()] == list(around.view.strides)
    assert around.damage() == ""


# what is seen of what it does


def test_writes_into_torch_tensors_are_seen():
    torch = pytest.importorskip("torch")

    def changes(query, key, value):
        query.mul_(2)
        return value.mean(-2, keepdim=True)

    def writes_before(query, key, value):
        torch.as_strided(key, (1,), (1,), key.storage_offset() - 1).fill_(0)
        return value.mean(-2, keepdim=True)

    for kernel, words in ((changes, "query was changed"), (writes_before, "guard bytes around key")):
        report = check_kernel(kernel, arrays="torch", only="guards: inputs", diagnose=False)
        assert words in report.text()


def test_out_is_a_tensor():
    pytest.importorskip("torch")

    def kernel(query, key, value, *, out):
        out.copy_(out.new_tensor(refattn.attention(query, key, value)))

    report = check_kernel(
        kernel, arrays="torch", spec="float32", only=["reference: normal", "strides: padded"]
    )
    assert report.passed and report.count("pass") == 2, report.text()


def right_on_device(query, key, value):
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value


@pytest.fixture
def pretended():
    pytest.importorskip("torch")
    from pretend_device import pretend_device

    with pretend_device() as device:
        yield device


MULTI_HEAD = "reference: normal, multi-head"


def test_on_a_device_results_are_copied_and_inputs_are_not(pretended):
    sizes = []

    def kernel(query, key, value):
        output = right_on_device(query, key, value)
        sizes.append((output.numel(), key.numel()))
        return output

    report = check_kernel(kernel, arrays="torch", device="pretend", only=[MULTI_HEAD])
    assert report.passed and report.settings["device"] == "pretend", report.text()
    assert "device='pretend'" in report.outcomes[0].reproduce
    ((output, key),) = sizes
    assert max(pretended.copied) == output < key


def test_on_a_device_writes_are_seen(pretended):
    def kernel(query, key, value):
        value[..., 0, 0] += 1
        return right_on_device(query, key, value)

    report = check_kernel(kernel, arrays="torch", device="pretend", only=[MULTI_HEAD], diagnose=False)
    assert report.failures[0].words == "value was changed"


def test_a_device_that_is_lost_ends_the_run(pretended):
    def kernel(query, key, value):
        pretended.lost = True
        return right_on_device(query, key, value)

    report = check_kernel(kernel, arrays="torch", device="pretend", only="reference: normal")
    assert len(report.outcomes) == 1 and report.interrupted is not None and not report.passed
    assert "illegal memory access. After this the device refuses all work" in report.failures[0].words


def test_errors_that_a_device_reports_late_belong_to_the_call(monkeypatch):
    """A queue that is empty only once the device was waited for, as that of a GPU."""
    pytest.importorskip("torch")
    queue = []

    def wait(self, returned):
        if queue:
            raise RuntimeError(queue.pop())

    def kernel(query, key, value):
        if query.shape[-2] == 1:
            queue.append("misaligned address")
        return refattn.attention(query, key, value).astype(np.float32)

    monkeypatch.setattr(LIBRARIES["torch"], "wait", wait)
    only = ["reference: normal", "reference: normal, one row", "reference: normal, one key"]
    report = check_kernel(kernel, arrays="torch", spec="float32", only=only, diagnose=False)
    assert [(outcome.name, outcome.words) for outcome in report.failures] == [
        ("normal, one row", "raised RuntimeError: misaligned address"),
        ("normal, one key", "raised RuntimeError: misaligned address"),
    ]


# errors of the caller, before any call


def raised(error, **options):
    with pytest.raises(error) as caught:
        check_kernel(options.pop("kernel", never), **options)
    return str(caught.value)


def test_an_unknown_library_and_a_device_of_numpy():
    assert (
        raised(ValueError, arrays="cupy")
        == "arrays must be one of numpy, torch, jax, mlx; got arrays='cupy'."
    )
    assert "device must be None for NumPy arrays" in raised(ValueError, device="cuda")


@pytest.mark.parametrize("name", OTHERS)
def test_a_library_that_is_not_installed(name, monkeypatch):
    monkeypatch.setitem(sys.modules, OTHERS[name], None)
    monkeypatch.setitem(sys.modules, name, None)
    words = raised(ImportError, arrays=name)
    assert words.startswith(
        f"arrays='{name}' needs the package {name}, which cannot be imported (pip install"
    )


@pytest.mark.parametrize("name", OTHERS)
def test_a_device_that_is_not_there(name):
    library(name)
    for device in ("cuda:99", "abacus"):
        words = raised(ValueError, arrays=name, device=device)
        assert words.startswith(
            f"device must be a device of {name} that is there and holds data; got device="
        )
        assert device in words


def test_a_torch_device_without_data():
    pytest.importorskip("torch")
    assert "device must be a device of torch" in raised(ValueError, arrays="torch", device="meta")


def test_dtypes_that_a_library_lacks():
    pytest.importorskip("ml_dtypes")
    for name, dtype in (("jax", "float64"), ("mlx", "float8_e4m3fn")):
        try:
            library(name)
        except pytest.skip.Exception:
            continue
        words = raised(ValueError, arrays=name, dtype=dtype)
        assert words.startswith("dtype must be one that") and dtype in words


def test_a_kernel_that_must_write_where_nothing_can():
    library("jax")

    def kernel(query, key, value, out):
        raise RuntimeError("the kernel was called")

    assert "kernel must return its output" in raised(ValueError, kernel=kernel, arrays="jax")


def test_dtypes_that_are_none():
    pytest.importorskip("ml_dtypes")
    assert "dtype must be float64, float32" in raised(ValueError, dtype="tfloat32")
    assert "for merge_states" in raised(ValueError, dtype="float8_e5m2", function="merge_states")


def test_no_library_is_imported_before_it_is_asked_for():
    code = (
        "import sys, refattn; from refattn.oracle import check_kernel\n"
        "assert check_kernel(refattn.attention_with_lse, spec='float64', only='exact: one key').passed\n"
        "assert not {'torch', 'jax', 'mlx'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
