"""The colours of pictures and pages stay apart for readers who lack one kind of cones."""

import itertools

import numpy as np
import pytest

from refattn.oracle.imaging.picture import COLOURS, HIDDEN

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
VISION = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, vision):
    """CIE L*a*b* of "#rrggbb" as it is seen."""
    rgb = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(TO_XYZ @ np.clip(np.asarray(VISION[vision]) @ linear, 1e-4, 1) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_kinds_of_pairs_stay_apart(vision):
    seen = {name: lab(colour, vision) for name, colour in {**COLOURS, "hidden": HIDDEN}.items()}
    apart = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)}
    del apart["small", "hidden"]  # two greys that say nothing is wrong
    nearest = min(apart, key=apart.get)
    assert apart[nearest] > 11, (nearest, apart[nearest])


def test_the_measure_of_colours_knows_red_from_green_only_where_eyes_do():
    difference = lambda vision: np.linalg.norm(lab("#c62828", vision) - lab("#5d7a00", vision))
    assert difference("usual") > 60 > 40 > difference("deuteranopia")
