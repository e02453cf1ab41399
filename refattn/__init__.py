"""The attention reference that kernel authors trust: MHA, MQA, GQA and MLA, exact, in NumPy."""

import importlib

from refattn._version import __version__ as __version__
from refattn.attention import AttentionSteps as AttentionSteps
from refattn.attention import attention as attention
from refattn.attention import attention_steps as attention_steps
from refattn.attention import attention_with_lse as attention_with_lse
from refattn.attention import grouped_query_attention as grouped_query_attention
from refattn.attention import multi_head_attention as multi_head_attention
from refattn.attention import multi_query_attention as multi_query_attention
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

_LOADED_ON_USE = ("convert", "costs", "goldens", "models", "oracle", "sizes")


def __getattr__(name):
    if name in _LOADED_ON_USE:
        return importlib.import_module(f"refattn.{name}")
    raise AttributeError(f"module 'refattn' has no attribute {name!r}")
