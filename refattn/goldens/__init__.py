"""Golden outputs that ship with the package: what `refattn verify` and the tests hold every function
against.

Made by `tests/goldens/make_goldens.py` with torch in float64; each file carries its provenance.
"""

from refattn.goldens.store import GoldenCase as GoldenCase
from refattn.goldens.store import GoldenError as GoldenError
from refattn.goldens.store import cases as cases
from refattn.goldens.store import files as files
from refattn.goldens.store import load as load
