"""The attention reference that kernel authors trust: MHA, MQA, GQA and MLA, exact, in NumPy.

Names are loaded on first use, and NumPy with them: pytest imports this package at every start, to reach
`refattn.pytest_plugin`. It would rewrite the assertions of whatever is installed beside a plugin, and
warn where the package was imported before it; the next word tells it not to.

PYTEST_DONT_REWRITE
"""

import importlib
from typing import TYPE_CHECKING

from refattn._version import __version__ as __version__

if TYPE_CHECKING:  # _HOME once more, for readers that do not run it
    from refattn.dense import AttentionSteps as AttentionSteps
    from refattn.dense import attention as attention
    from refattn.dense import attention_steps as attention_steps
    from refattn.dense import attention_with_lse as attention_with_lse
    from refattn.dense import grouped_query_attention as grouped_query_attention
    from refattn.dense import multi_head_attention as multi_head_attention
    from refattn.dense import multi_query_attention as multi_query_attention
    from refattn.latent import latent_attention as latent_attention
    from refattn.latent import latent_attention_with_lse as latent_attention_with_lse
    from refattn.latent import multi_head_latent_attention as multi_head_latent_attention
    from refattn.local import block_local_attention as block_local_attention
    from refattn.local import block_local_attention_with_lse as block_local_attention_with_lse
    from refattn.merge import merge_states as merge_states
    from refattn.packed import packed_attention as packed_attention
    from refattn.packed import packed_attention_with_lse as packed_attention_with_lse
    from refattn.paged import paged_attention as paged_attention
    from refattn.paged import paged_attention_with_lse as paged_attention_with_lse

# name -> module that defines it; none is called like a function, or importing it would put the module in the
# function's place
_HOME = {
    "AttentionSteps": "dense",
    "attention": "dense",
    "attention_steps": "dense",
    "attention_with_lse": "dense",
    "grouped_query_attention": "dense",
    "multi_head_attention": "dense",
    "multi_query_attention": "dense",
    "latent_attention": "latent",
    "latent_attention_with_lse": "latent",
    "multi_head_latent_attention": "latent",
    "block_local_attention": "local",
    "block_local_attention_with_lse": "local",
    "merge_states": "merge",
    "packed_attention": "packed",
    "packed_attention_with_lse": "packed",
    "paged_attention": "paged",
    "paged_attention_with_lse": "paged",
}
_MODULES = ("convert", "costs", "goldens", "models", "oracle", "sizes", "textbook")

__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"refattn.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'refattn' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"refattn.{_HOME[name]}")
    except ImportError as error:
        if "subinterpreter" in str(error) or "once per process" in str(error):
            raise ImportError(
                "NumPy cannot be imported in this subinterpreter: call refattn from the main interpreter. "
                f"({error})"
            ) from error
        raise
    value = globals()[name] = getattr(module, name)
    return value


def __dir__():
    return sorted({*globals(), *_HOME, *_MODULES})
