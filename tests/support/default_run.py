"""Which cases of a parametrised test the default run leaves to the campaigns; see conftest.py."""

import zlib


def number_of(text):
    """The same in every process, and without a pattern that could follow the order of cases."""
    return zlib.crc32(text.encode())


def left_out(cases, n):
    """The cases of one test that are neither among one in n nor needed to show something that no
    other shows.
    """

    def name(case):
        return case.nodeid.rpartition("/")[2]  # wherever the file lies

    kept = [case for case in cases if number_of(name(case)) % n == 0] or cases[:1]
    seen = {what for case in kept for what in shown(case)}
    for case in cases:
        if case not in kept and seen >= {*shown(case)}:
            yield case
        seen |= {*shown(case)}


def shown(case):
    """Words for what one case shows: of a call its function, options, family and layout; of several
    parameters their values.
    """
    several = len(case.callspec.params) > 1
    for name, value in case.callspec.params.items():
        if hasattr(value, "function") and hasattr(value, "options"):
            yield from (f"{what} {getattr(value, what, '')}" for what in ("function", "family", "layout"))
            yield from words(value.options)
        elif isinstance(value, dict):
            yield from words(value)
        elif several and isinstance(value, str | int | float | None):
            yield f"{name}={value!r}"
        elif several and callable(value):
            yield f"{name}={id(value)}"


def words(options):
    return [f"{name}={value}" if isinstance(value, str | bool) else name for name, value in options.items()]
