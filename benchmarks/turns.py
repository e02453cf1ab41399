"""Workers, one process a contender, that take turns: while one computes, the others are stopped and cannot
spin.

Every process is held to the threads that its row claims, by affinity to as many CPUs where the system has
that, and by each library's own setting.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from peers import CONTENDERS, OURS

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
TURN = 0.02  # seconds a turn takes at least
PATIENCE = 300  # seconds until a worker that does not answer is given up
SLOW = {50: 1, 10: 3}  # a contender this many times slower than ours takes part in only so many rounds


class Worker:
    """The process of one contender; `ask` sends a request and waits for the answer."""

    def __init__(self, name, threads, root=ROOT, **environment):
        self.name, self.spent = name, 0.0
        script = str(FOLDER / "worker.py")
        self.command = [sys.executable, script, name, str(threads), json.dumps(cpus_for(threads))]
        held = held_to(
            1 if name == "read_by_blas" else threads
        )  # that one makes a call of BLAS in each thread
        self.environment = {**os.environ, **held, "PYTHONPATH": str(root), **environment}
        self.process = self.about = None

    def load(self, shape, folder):
        """Start if need be, prepare a call of this shape and check its result; a limit has no shape."""
        if self.process is None:
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            self.process, self.spent = subprocess.Popen(self.command, env=self.environment, **pipes), 0.0
        self.about = self.ask(do="load", shape=shape and asdict(shape), folder=str(folder))
        return self.about

    def turn(self):
        return self.ask(do="turn", seconds=TURN)

    def ask(self, **request):
        self._signal("SIGCONT")
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            if select.select([self.process.stdout], [], [], PATIENCE)[0]:
                answer = self.process.stdout.readline()
        if not answer:
            return {"failed": f"the process ended or was given up, return code {self.close()}"}
        self._signal("SIGSTOP")
        answer = json.loads(answer)
        self.spent = answer.pop("spent")
        return answer

    def _signal(self, name):
        if hasattr(signal, name):
            self.process.send_signal(getattr(signal, name))

    def close(self):
        """End the process; returns its code."""
        process, self.process = self.process, None
        if process is None:
            return None
        process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return process.wait()


def held_to(threads):
    """Environment in which libraries use so many threads, and threads without work sleep."""
    counts = ["OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMBA"]
    # Eigen in XLA has no count of its own: it starts a thread for each CPU of the affinity.
    xla = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" if threads == 1 else ""
    return {
        **{f"{name}{'' if name.endswith('MAXIMUM') else '_NUM'}_THREADS": str(threads) for name in counts},
        "KMP_BLOCKTIME": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "XLA_FLAGS": xla,
        "JAX_PLATFORMS": "cpu",
    }


def cpus_for(threads):
    """The CPUs to stay on: one a core before a second one of any core, and the first ones last, where
    interrupts arrive; None without affinity."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    siblings = {}
    for cpu in sorted(os.sched_getaffinity(0), reverse=True):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.setdefault(topology.read_text() if topology.exists() else cpu, []).append(cpu)
    order = sorted((place, -cpu) for core in siblings.values() for place, cpu in enumerate(core))
    return [-cpu for _, cpu in order[:threads]]


def take_turns(workers, rounds, patience=float("inf"), slow=SLOW):
    """Answers of every worker in every round, {name: [answer, ...]}, and what else the machine did
    meanwhile, in CPUs.

    Rounds go forth and back, A B C, C B A, so that a machine that gets slower or faster favours nobody.
    After `patience` seconds three rounds are enough. A worker that fails leaves the turns and keeps its
    failure as its last answer.
    """
    answers = {name: [] for name in workers}

    def spent_by_us():
        return sum(worker.spent for worker in workers.values()) + time.process_time()

    spent, busy, start = spent_by_us(), busy_seconds(), time.perf_counter()
    limit = dict.fromkeys(workers, rounds)
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > patience:
            break
        for name in list(workers)[:: -1 if number % 2 else 1]:
            if number < limit[name]:
                answers[name].append(workers[name].turn())
                if "failed" in answers[name][-1]:
                    limit[name] = 0
        if number == 0 and OURS in workers:
            for name, (first,) in answers.items():
                ratio = first.get("seconds", 0) / answers[OURS][0].get("seconds", float("inf"))
                if name in CONTENDERS:  # limits take part in every round
                    limit[name] = min([limit[name], *(few for times, few in slow.items() if ratio > times)])
    others = (busy_seconds() - busy - (spent_by_us() - spent)) / (time.perf_counter() - start)
    return answers, round(max(0.0, others), 2)


def busy_seconds():
    """Processor time that all processes of the machine, and its host, have taken; 0 where the system does
    not say."""
    try:
        user, nice, system, _, _, irq, softirq, steal = (
            int(x) for x in Path("/proc/stat").read_text().split()[1:9]
        )
    except OSError:
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
