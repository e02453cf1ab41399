"""What does a kernel do? Its weights are measured and compared with the right ones, and the difference is
described.
"""

import sys
import types


class _Room(types.ModuleType):
    """This package. Called, it is the function `xray`: once the package is imported, `refattn.oracle.xray`
    names it, and the function of that name must be had all the same.
    """

    def __call__(self, *arguments, **options):
        from refattn.oracle.xray.xray import xray

        return xray(*arguments, **options)


sys.modules[__name__].__class__ = _Room
