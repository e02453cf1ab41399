#!/bin/sh
# Run the kernel tests on builds other than this machine's own.
#
#   tests/kernel_builds.sh [--sample] [BUILD ...]        default: all
#
#   --sample      of each test the cases that the default run has: a share, and every function, option, family and layout
#   interpreted   kernels and their building blocks as plain Python: every access checked by NumPy, every line visible to debuggers
#   bounds        compiled with bounds checks; an access outside an array raises IndexError, on whichever thread
#   avx2, plain   compiled for x86-64 CPUs without AVX-512, and without any extension (skipped on other architectures, and avx2 where this machine has
#                 no AVX-512: its own build, which the other tests run, is that one)
#   neon          on a 64-bit ARM CPU, or with ARM_PYTHON naming a Python for one that runs here by emulation; there it takes an hour (not by default)
#   coverage      line and branch coverage of cpu_kernels, interpreted and compiled runs combined; fails below COVERAGE_MINIMUM percent
#
# PYTHON names the interpreter. For ARM_PYTHON, unpack the arm64 packages of Python 3.11, libc and what they need of a Debian release into a folder,
# the aarch64 wheels of NumPy, Numba, llvmlite, ml_dtypes and mpmath and the pure ones of pytest into another, and let a script set QEMU_LD_PREFIX to
# the first, add the second to PYTHONPATH, and call qemu-aarch64-static (user mode) with the first one's python3.11.
#
# The compiled runs keep their code in a cache of their own, or in none.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
COVERAGE_MINIMUM=${COVERAGE_MINIMUM:-90}
MARKED=''
if [ "${1:-}" = --sample ]; then
    MARKED='not campaign' && shift
fi
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

KERNELS=tests/cpu_kernels/kernels
CASES="$KERNELS/test_kernels.py $KERNELS/test_kernels_narrow.py -k test_case"
# Plain Python multiplies and adds in two roundings; this case's statistical bound knows only the fused operation of the compiled kernels.
UNFUSED="--deselect $KERNELS/test_kernels.py::test_case[family-cancellation-float32]"

kernel_tests() {
    "$PYTHON" -m pytest -q -n auto --dist worksteal -p no:cacheprovider -m "$MARKED" "$@"
}

covered() {
    "$PYTHON" -m coverage run --branch --parallel-mode --source=cpu_kernels -m pytest -q -p no:cacheprovider -m "$MARKED" "$@"
}

x86() {
    case $(uname -m) in
    x86_64 | amd64) return 0 ;;
    *) echo "skipped: not an x86-64 machine" && return 1 ;;
    esac
}

has_avx512() {
    "$PYTHON" -c 'import llvmlite.binding as llvm; raise SystemExit(not llvm.get_host_cpu_features().get("avx512f"))' && return 0
    echo "skipped: this machine has no AVX-512, so its own build is this one" && return 1
}

for build in ${*:-interpreted bounds avx2 plain coverage}; do
    echo "== kernels, $build"
    case $build in
    interpreted) NUMBA_DISABLE_JIT=1 kernel_tests $CASES $UNFUSED ;;
    bounds) CPU_KERNELS_CACHE_DIR="$scratch/$build" NUMBA_BOUNDSCHECK=1 kernel_tests $CASES ;;
    avx2)
        if x86 && has_avx512; then
            CPU_KERNELS_CACHE_DIR="$scratch/$build" NUMBA_CPU_NAME=haswell \
                NUMBA_CPU_FEATURES=+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2 kernel_tests $CASES
        fi
        ;;
    neon)
        case $(uname -m) in
        aarch64 | arm64) kernel_tests $CASES ;;
        *)
            if [ -n "${ARM_PYTHON:-}" ]; then
                # An emulator shows the features of the machine it runs on, so they are named.
                PYTHON=$ARM_PYTHON CPU_KERNELS_CACHE_DIR="$scratch/$build" NUMBA_CPU_NAME=neoverse-n1 NUMBA_CPU_FEATURES=+neon,+fp-armv8,+lse,+rdm \
                    kernel_tests $CASES
            else
                echo "skipped: not an ARM machine, and ARM_PYTHON is not set"
            fi
            ;;
        esac
        ;;
    plain)
        if x86; then
            CPU_KERNELS_CACHE_DIR="$scratch/$build" NUMBA_CPU_NAME=x86-64 NUMBA_CPU_FEATURES=+sse,+sse2 kernel_tests $CASES
        fi
        ;;
    coverage)
        export COVERAGE_FILE="$scratch/measured"
        export CPU_KERNELS_CACHE_DIR="$scratch/$build"
        # Beside the others, which take about as long together. What is left out compares bits, which NumPy's matrix product does
        # not promise when shapes differ, or is long; interpreted, the cases of the default run take long enough.
        NUMBA_DISABLE_JIT=1 covered -m "not campaign" $KERNELS/test_kernels_hidden.py -k "not hold_anything and not 2048" &
        hidden=$!
        NUMBA_DISABLE_JIT=1 covered $KERNELS/test_kernels.py $UNFUSED
        # Compiling runs the code that writes machine code and keeps it; the run after it loads.
        covered $KERNELS/test_kernels.py -k "test_case and (pair or latent or paged)"
        covered $KERNELS/test_kernels.py -k "not test_case"
        covered tests/cpu_kernels/machine/test_thread_pool.py tests/cpu_kernels/machine/test_cpu_limits.py -k "not interrupt and not affinity_is"
        covered tests/cpu_kernels/compiler/test_cache.py -k "private_folder or old_states or usual_places or digest_covers"
        wait "$hidden"
        "$PYTHON" -m coverage combine -q
        "$PYTHON" -m coverage report --skip-covered --show-missing --fail-under="$COVERAGE_MINIMUM"
        ;;
    *) echo "unknown build: $build" >&2 && exit 2 ;;
    esac
done
