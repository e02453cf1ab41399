"""Puts this directory on the import path, so that tests in subdirectories find `cases`, `families` and `naive`."""

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)
