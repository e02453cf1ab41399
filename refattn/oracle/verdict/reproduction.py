"""The lines of Python that make a check again, with the caller's own arrays."""

from __future__ import annotations

import numpy as np

from refattn.calls.registry import ATTENTION, form_called
from refattn.oracle.arithmetic.spec import kernel_spec, spec_words

FEW = 8  # numbers of an option that are written out


def lines_of_check(function, actual, arrays, lse, spec, how, options) -> str:
    """A call of `check`; arrays by their names, with dtype and shape in comments. `how` are arguments of
    `check` itself; `spec` is as the caller gave it. Arrays may be of any library.
    """
    # none where a dialect takes them by its own names, as options
    names = [*form_called(function, ATTENTION).arrays][: len(arrays)]
    given = {"output": actual, **dict(zip(names, arrays, strict=False)), "lse": lse}
    words = ["None" if actual is None else "output", *names]
    words += ["lse=lse"] if lse is not None else []
    words += [f"function={function!r}"] if function != "attention" else []
    words += [f"spec={spec_words(kernel_spec(spec, np.float32))}"] if spec is not None else []
    for name, value in {**options, **how}.items():
        if value is None or value is False or (name == "seed" and value == 0):
            continue
        if isinstance(value, str | tuple | bool | int | float):
            words.append(f"{name}={value!r}")
            continue
        if callable(value):  # rows= of `check_kernel`
            words.append(f"{name}={name}")
            given[name] = value
            continue
        array = value if hasattr(value, "shape") else np.asarray(value)
        if array.ndim > 1 or max(array.shape, default=0) > FEW:
            given[name] = array
            words.append(f"{name}={name}")
        else:
            words.append(f"{name}={array.tolist()!r}")
    held = "\n".join(f"# {name}: {_described(array)}" for name, array in given.items() if array is not None)
    return f"from refattn.oracle import KernelSpec, check\n{held}\nprint(check({', '.join(words)}))"


def _described(array):
    """ "float32 (2, 4, 32)"."""
    if callable(array):
        return "a function, as check takes it"
    array = array if hasattr(array, "dtype") else np.asarray(array)
    return f"{str(array.dtype).removeprefix('torch.')} {tuple(array.shape)}"
