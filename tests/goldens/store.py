"""Writing golden files: one .npz with the arrays of each dtype end to end, and a JSON manifest. NumPy
only; `refattn.goldens` reads them.
"""

import hashlib
import json

import numpy as np

FORMAT = 1


def digest(array):
    """sha256 over dtype, shape and the bytes in C order."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()


class Bundle:
    """Cases that share one file; equal arrays are stored once."""

    def __init__(self, made_by):
        self.made_by = made_by
        self.arrays = {}
        self.keys = {}
        self.cases = []

    def keep(self, array):
        """Store an array and return the key that stands for it."""
        array = np.asarray(array)
        mark = digest(array)
        if mark not in self.keys:
            self.keys[mark] = f"array{len(self.arrays)}"
            self.arrays[self.keys[mark]] = array
        return self.keys[mark]

    def option(self, value):
        if isinstance(value, np.ndarray):
            return {"array": self.keep(value)}
        return list(value) if isinstance(value, tuple) else value

    def add(self, name, variant, source, function, arguments, options, golden, provenance):
        self.cases.append(
            {
                "name": name,
                "variant": variant,
                "source": source,
                "function": function,
                "arguments": {n: self.keep(a) for n, a in arguments.items()},
                "options": {n: self.option(v) for n, v in options.items()},
                "golden": {n: self.keep(a) for n, a in golden.items()},
                "provenance": provenance,
            }
        )

    def write(self, path):
        entries, parts = {}, {}
        for key, array in self.arrays.items():
            name = array.dtype.name
            start = sum(len(part) for part in parts.setdefault(name, []))
            parts[name].append(array.ravel())
            entries[key] = {
                "dtype": name,
                "start": start,
                "shape": list(array.shape),
                "sha256": digest(array),
            }
        manifest = json.dumps(
            {"format": FORMAT, "made_by": self.made_by, "arrays": entries, "cases": self.cases}
        )
        text = np.frombuffer(manifest.encode(), np.uint8)
        mark = np.frombuffer(hashlib.sha256(manifest.encode()).hexdigest().encode(), np.uint8)
        np.savez_compressed(
            path,
            manifest=text,
            manifest_sha256=mark,
            **{name: np.concatenate(part) for name, part in parts.items()},
        )
