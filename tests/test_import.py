"""`import refattn` costs nothing until a name is used, and every name is there: at run time, for
completion and for type checkers.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import refattn

PACKAGE = Path(refattn.__file__).parent
SUBMODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["refattn", "refattn.pytest_plugin", "refattn.cli"])
def test_neither_the_package_nor_its_entry_points_import_numpy(module):
    assert python(f"import sys, {module}; print('numpy' in sys.modules)") == "False"


def test_a_function_loads_numpy_and_nothing_else():
    heavy = {"numpy", "scipy", "numba", "ml_dtypes", "torch", "refattn.oracle"}
    assert (
        python(f"import sys, refattn; refattn.attention; print({heavy} & {{*sys.modules}})") == "{'numpy'}"
    )


@pytest.mark.parametrize("package", [refattn, refattn.oracle], ids=lambda package: package.__name__)
def test_type_checkers_read_the_names_that_are_loaded(package):
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    homes = {
        alias.asname: node.module.removeprefix("refattn.") for node in block.body for alias in node.names
    }
    assert homes == package._HOME
    assert all(alias.name == alias.asname for node in block.body for alias in node.names)


def test_every_name_is_listed_and_found():
    assert {*refattn.__all__} == {*refattn._HOME} <= {*dir(refattn)} and {*refattn._MODULES} <= {
        *dir(refattn)
    }
    for name, home in refattn._HOME.items():
        assert getattr(refattn, name).__module__ == f"refattn.{home}"
    namespace = {}
    exec("from refattn import *", namespace)
    assert namespace["attention"] is refattn.attention
    with pytest.raises(AttributeError, match="module 'refattn' has no attribute 'atention'"):
        refattn.atention


def test_no_import_puts_a_module_in_the_place_of_a_function():
    assert not {*refattn.__all__} & {*SUBMODULES}
