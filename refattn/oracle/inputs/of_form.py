"""The inputs of a form: each form has a file of its own beside this one, under its name."""

import importlib


def inputs_of(form):
    """The module of a form's inputs: `cases`, `exact` and `hidden_pairs`, which `check_kernel` and
    the plugin run; `with_options(names, dtype, seed)`, one call, and its `SIZES`; `suite(dtype, seed)`,
    calls that together show every mistake of the form.
    """
    return importlib.import_module(f"refattn.oracle.inputs.{form.name}")
