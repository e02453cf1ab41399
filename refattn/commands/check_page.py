"""The page of `refattn check --html`: a section for every result, and the X-ray of the kernel, if given."""

from __future__ import annotations

import shlex
from pathlib import Path


def add_page_arguments(parser):
    """Add `--html` and `--kernel`."""
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write a page to look at in a browser: verdicts, maps of heads and rows, the worst elements",
    )
    parser.add_argument(
        "--kernel",
        metavar="MODULE:FUNCTION",
        help="with --html: the kernel, as 'refattn xray' takes it; the page then shows the X-ray of "
        "results that are wrong",
    )
    parser.set_defaults(seconds=30.0)  # for one X-ray


def require_page(args):
    """Raise before work starts where no page can be written."""
    if args.html is None:
        if args.kernel is not None:
            raise ValueError(f"--kernel must be given with --html; got --kernel {args.kernel} alone.")
        return
    if Path(args.html).suffix.lower() != ".html" or not Path(args.html).parent.is_dir():
        raise ValueError(f"--html must name a .html file in a folder that exists; got {args.html!r}.")


def write_page(args, judged):
    """Write the page; `judged` holds (pair, status, text, report or None) of every result."""
    from refattn.oracle.verdict.page import Section, page

    sections = []
    for pair, status, text, report in judged:
        if report is None:
            words = text.split("\n")
            sections.append(Section(pair.name, "FAIL" if status == "fail" else status, words))
        else:
            sections += report.sections(pair.name)
        sections[-1].reproduce = _command(args)
        if status == "fail" and args.kernel is not None:
            sections += _xray(args, pair)
    right = sum(status == "pass" for _, status, *_ in judged)
    wrong = next((text for _, status, text, _ in judged if status != "pass"), "")
    summary = f"{right} of {len(judged)} results are right"
    if len(judged) == 1:
        _, _, summary, report = judged[0]
        summary = summary if report is None else report.summary.removeprefix(f"{report.function}: ")
    elif wrong:
        summary += f"; the first that is not: {wrong}"
    verdict = "pass" if right == len(judged) else "FAIL"
    text = page(f"refattn check {Path(args.case).name}", verdict, summary.split("\n")[0], sections)
    Path(args.html).write_text(f"{text}\n", encoding="utf-8")


def _xray(args, pair):
    """The section of the X-ray of the kernel on a case, or of why there is none."""
    from refattn.commands.xray import Raised, load_kernel, xrayed
    from refattn.oracle.harness.callables import Unsupported
    from refattn.oracle.imaging.probes import CannotProbe
    from refattn.oracle.verdict.page import Section

    case = pair.read()[0]
    try:
        spec = args.spec or case.spec
        found = xrayed(load_kernel(args.kernel), args, case.function, case.arrays, case.options, spec)
    except (Raised, Unsupported, CannotProbe) as error:
        return [Section("X-ray", "not measured", [str(error)])]
    return found.sections()


def _command(args):
    """The command that was called, without the page."""
    words = ["refattn", "check", str(args.case), str(args.result)]
    for name in ("lse", "spec", "rows", "dialect"):
        value = getattr(args, name, None)
        if value is not None and value != "refattn":
            words += [f"--{name}", str(value)]
    for name in ("stored", "ignore_empty_rows", "require_complete"):
        words += [f"--{name.replace('_', '-')}"] if getattr(args, name) else []
    return shlex.join(words)
