"""One contender in a process of its own: `python worker.py NAME THREADS CPUS`, asked and answering in lines
of JSON.

    {"do": "load", "folder": ..., "shape": {...}}    converts the inputs there and checks the output
        -> {"bound_used": ...}
    {"do": "turn", "seconds": ...}                   calls for at least so long
        -> {"seconds": of a call, mean, "wall": of all calls, "cpu": processor time of all threads}

Every answer also tells the processor time "spent" by this process so far; {"failed": reason} is what a
contender answers that cannot.
"""

import json
import os
import sys
import time
from itertools import cycle
from pathlib import Path

MOST_COPIES = 1024  # of inputs; those of 128 KiB and less are dominated by other things than reading


def main():
    name, threads, cpus = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    if cpus:
        os.sched_setaffinity(0, cpus)  # before any library counts its CPUs
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    contender = None
    for request in map(json.loads, sys.stdin):
        try:
            if request["do"] == "load":
                contender = None  # frees its memory
                contender = (Limit if request["shape"] is None else Contender)(name, threads, request)
                answer = contender.about
            else:
                answer = turn(contender.calls, request["seconds"])
        except Exception as error:  # a library that is missing or refuses a shape is a result too
            answer = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:150]}
        print(json.dumps({**answer, "spent": time.process_time()}), file=answers, flush=True)


class Contender:
    """An attention function and its inputs: several copies when decoding, used in turn, so that no cache
    holds what is read."""

    def __init__(self, name, threads, request):
        import numpy as np
        from grid import Shape
        from inputs import used_of_bound
        from peers import CONTENDERS

        shape, folder = Shape(**request["shape"]), Path(request["folder"])
        convert, attend = CONTENDERS[name](shape, threads)
        files = ["query", "key"] if shape.v_head_dim else ["query", "key", "value"]
        arrays = [np.load(folder / f"{file}.npy") for file in files]

        def converted(query, key, value=None):
            return convert(query, key, key[..., : shape.v_head_dim] if value is None else value)

        copies = [converted(*arrays)]
        self.about = {"bound_used": used_of_bound(attend(*copies[0]), folder)}
        if shape.kind == "decode":
            size = sum(x.nbytes for x in copies[0])
            for _ in range(min(-(-cold_bytes() // size), MOST_COPIES) - 1):
                copies.append(converted(*(x.copy() for x in arrays)))
        self.calls = cycle([lambda arrays=arrays: attend(*arrays) for arrays in copies])


class Limit:
    def __init__(self, name, threads, request):
        from limits import LIMITS

        work, run = LIMITS[name](threads)
        run()  # compiles it
        self.about = {"work": work}
        self.calls = cycle([run])


def turn(calls, seconds):
    """Calls for at least so long, after one that does not count: the process was stopped and its code has
    left the caches. A call that is longer than a turn would hardly notice, and its time is saved."""
    start, cpu = time.perf_counter(), time.process_time()
    next(calls)()
    wall, count = time.perf_counter() - start, 1
    if wall < seconds:
        start, cpu, wall, count = time.perf_counter(), time.process_time(), 0.0, 0
        while wall < seconds:
            next(calls)()
            wall, count = time.perf_counter() - start, count + 1
    # The mean, because a median would hide what short calls lose to other processes and long ones show.
    return {"seconds": wall / count, "wall": wall, "cpu": time.process_time() - cpu}


def cold_bytes():
    """Bytes that go through the caches between two uses of the same copy: four times what the last one
    holds."""
    known = "SC_LEVEL3_CACHE_SIZE" in getattr(os, "sysconf_names", {})
    return max(128 << 20, 4 * os.sysconf("SC_LEVEL3_CACHE_SIZE") if known else 0)


if __name__ == "__main__":
    main()
