"""Derive the coefficients of `cpu_kernels/kernels/exponential.py`: Remez exchange in 40 digits, of least
relative error.

python benchmarks/fit_polynomials.py
"""

import mpmath as mp

GRID = 1500


def remez(target, degree, low, high, weight, constant=None, rounds=12):
    """Coefficients, lowest first, of the polynomial that minimises the largest |p - target| * weight;
    `constant` fixes the first one.
    """
    lowest = 0 if constant is None else 1
    fixed = constant or mp.mpf(0)
    free = degree + 1 - lowest
    points = [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * free + 2))
        for i in range(free + 1)
    ]
    grid = [low + (high - low) * i / GRID for i in range(GRID + 1)]
    for _ in range(rounds):
        system, right = mp.matrix(free + 1, free + 1), mp.matrix(free + 1, 1)
        for i, x in enumerate(points):
            for j in range(free):
                system[i, j] = x ** (j + lowest) * weight(x)
            system[i, free] = (-1) ** i
            right[i] = (target(x) - fixed) * weight(x)
        solved = mp.lu_solve(system, right)
        coefficients = [fixed] * lowest + [solved[j] for j in range(free)]
        errors = [(mp.polyval(coefficients[::-1], x) - target(x)) * weight(x) for x in grid]
        points = alternating_extremes(grid, errors, free + 1)
        if points is None:
            break
    return coefficients, max(abs(error) for error in errors)


def alternating_extremes(grid, errors, count):
    """The largest error of every run of one sign, `count` of them, or None if there are fewer."""
    runs = [[(grid[0], errors[0])]]
    for x, error in zip(grid[1:], errors[1:]):
        if (error > 0) != (runs[-1][-1][1] > 0):
            runs.append([])
        runs[-1].append((x, error))
    extremes = [max(run, key=lambda point: abs(point[1])) for run in runs]
    while len(extremes) > count:
        extremes.pop(0 if abs(extremes[0][1]) < abs(extremes[-1][1]) else -1)
    return [x for x, _ in extremes] if len(extremes) == count else None


def exp2(x):
    return mp.mpf(2) ** x


def tanh_rest(z):
    """(tanh(x) / x - 1) / x**2 as a function of z = x**2."""
    if z < mp.mpf(10) ** -12:
        return -mp.mpf(1) / 3 + z * 2 / 15
    return (mp.tanh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z


if __name__ == "__main__":
    mp.mp.dps = 40
    half, limit = mp.mpf(1) / 2, mp.mpf(5) / 8
    for name, degree in (("float32", 6), ("float64", 11)):
        coefficients, error = remez(exp2, degree, -half, half, lambda x: 1 / exp2(x), constant=mp.mpf(1))
        print("EXP2", name, mp.nstr(error, 3), [float(c) for c in coefficients])
    for name, degree in (("float32", 5), ("float64", 11)):
        coefficients, error = remez(tanh_rest, degree, mp.mpf(10) ** -9, limit**2, lambda z: z)
        print("TANH", name, mp.nstr(error, 3), [float(c) for c in coefficients])
