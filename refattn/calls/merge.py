"""Results to be merged: states (output, lse) of the same rows over different keys."""

from dataclasses import dataclass

import numpy as np

from refattn.calls.arrays import as_float_array
from refattn.calls.form import Checked, Form
from refattn.calls.memory import ensure_allocatable
from refattn.calls.options import OPTION_NAMES


@dataclass(frozen=True, eq=False)
class States(Checked):
    """Checked states; each output is (..., T, E) and each lse (..., T)."""

    outputs: list[np.ndarray]
    lses: list[np.ndarray]

    @property
    def form(self):
        return MERGE

    @property
    def output_shape(self):
        return self.outputs[0].shape


def checked_states(outputs, lses):
    """Check the arguments of `refattn.merge_states`."""
    outputs, lses = as_sequence(outputs, "outputs"), as_sequence(lses, "lses")
    if len(outputs) != len(lses) or len(outputs) == 0:
        raise ValueError(
            "outputs and lses must hold the same number of states, at least one; "
            f"got len(outputs)={len(outputs)}, len(lses)={len(lses)}."
        )
    outputs = [as_float_array(output, f"outputs[{n}]") for n, output in enumerate(outputs)]
    lses = [as_float_array(lse, f"lses[{n}]") for n, lse in enumerate(lses)]
    for n, (output, lse) in enumerate(zip(outputs, lses, strict=True)):
        if output.ndim < 1 or output.shape != outputs[0].shape:
            raise ValueError(
                "outputs must all have the same shape (..., length, dim); "
                f"got outputs[0].shape={outputs[0].shape}, outputs[{n}].shape={output.shape}."
            )
        if lse.shape != output.shape[:-1]:
            raise ValueError(
                f"lses[{n}] must have shape {output.shape[:-1]} to match outputs[{n}]; got "
                f"lses[{n}].shape={lse.shape}."
            )
    ensure_allocatable(8 * len(outputs) * (outputs[0].size + lses[0].size), "states")
    return States(outputs, lses)


def as_sequence(states, name):
    if isinstance(states, (list, tuple)):
        return tuple(states)  # a list could change its length during the call
    stacked = as_float_array(states, name)
    if stacked.ndim < 1:
        raise ValueError(f"{name} must be a sequence of arrays or one stacked array; got {name}.shape=().")
    return stacked


MERGE = Form(
    name="merge",
    function="merge_states",
    arrays={"outputs": "state batch head row v_head_dim", "lses": "state batch head row"},
    results={"output": "batch head row v_head_dim", "lse": "batch head row"},
    check=checked_states,
    without=OPTION_NAMES,
    joins=True,
)
