"""What does a kernel do? Its weights measured, compared with the right ones, and the difference described."""

import sys
import types


class _Room(types.ModuleType):
    """This package; called, it is the function of the same name, which `refattn.oracle` offers under that name."""

    def __call__(self, *arguments, **options):
        from refattn.oracle.xray.xray import xray

        return xray(*arguments, **options)


sys.modules[__name__].__class__ = _Room
