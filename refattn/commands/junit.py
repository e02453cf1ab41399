"""JUnit XML, as continuous integration servers read it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path, suite: str, rows) -> None:
    """Write a test suite.

    Parameters
    ----------
    path : path-like
    suite : str
    rows : iterable of (name, status, text, seconds)
        status is "pass", "fail", "error" or "skip".
    """
    rows = list(rows)
    count = lambda status: str(sum(row[1] == status for row in rows))
    counts = {
        "tests": str(len(rows)),
        "failures": count("fail"),
        "errors": count("error"),
        "skipped": count("skip"),
    }
    root = ElementTree.Element("testsuites", counts)
    group = ElementTree.SubElement(
        root, "testsuite", {"name": suite, "time": f"{sum(row[3] for row in rows):.3f}", **counts}
    )
    for name, status, text, seconds in rows:
        case = ElementTree.SubElement(
            group, "testcase", {"classname": suite, "name": NOT_XML.sub("?", name), "time": f"{seconds:.3f}"}
        )
        if status != "pass":
            kind = {"fail": "failure", "error": "error", "skip": "skipped"}[status]
            text = NOT_XML.sub("?", text)
            ElementTree.SubElement(case, kind, {"message": text.splitlines()[0] if text else ""}).text = text
    Path(path).write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
