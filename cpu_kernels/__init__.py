"""Attention on the CPU at the speed of the machine: the functions of `refattn`, compiled with Numba.

Same names, arguments, errors and conventions; the output has the query's dtype and lse is float32 for
float32 and narrower. Nothing is compiled on import: the first call of each kind compiles, later processes
load it from the cache.

PYTEST_DONT_REWRITE (see `refattn`)
"""

import sys as _sys

from cpu_kernels.machine import cpu_limits as _cpu_limits

if "numba" not in _sys.modules:
    _cpu_limits.require_usable_numba_num_threads()

from cpu_kernels.dense import attention as attention
from cpu_kernels.dense import attention_with_lse as attention_with_lse
from cpu_kernels.dense import grouped_query_attention as grouped_query_attention
from cpu_kernels.dense import multi_head_attention as multi_head_attention
from cpu_kernels.dense import multi_query_attention as multi_query_attention
from cpu_kernels.latent import latent_attention as latent_attention
from cpu_kernels.latent import latent_attention_with_lse as latent_attention_with_lse
from cpu_kernels.latent import multi_head_latent_attention as multi_head_latent_attention
from cpu_kernels.local import block_local_attention as block_local_attention
from cpu_kernels.local import block_local_attention_with_lse as block_local_attention_with_lse
from cpu_kernels.machine.thread_pool import get_num_threads as get_num_threads
from cpu_kernels.machine.thread_pool import num_threads as num_threads
from cpu_kernels.machine.thread_pool import set_num_threads as set_num_threads
from cpu_kernels.merge import merge_states as merge_states
from cpu_kernels.packed import packed_attention as packed_attention
from cpu_kernels.packed import packed_attention_with_lse as packed_attention_with_lse
from cpu_kernels.paged import paged_attention as paged_attention
from cpu_kernels.paged import paged_attention_with_lse as paged_attention_with_lse
