"""A stand-in for a tensor in GPU memory."""

import numpy as np


class FakeGpu:
    """Describes itself through DLPack; copying it to the CPU behind the caller's back would work, as
    it does for jax arrays.
    """

    def __init__(self, device_type=2, device_id=0):
        self.place = (device_type, device_id)

    def __dlpack_device__(self):
        return self.place

    def __array__(self, dtype=None, copy=None):
        return np.ones((2, 6, 4, 8))
