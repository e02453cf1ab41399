"""The catalogue of mistakes and foreign conventions; mutants commit them, `diagnose` looks for them."""

from refattn.oracle.mistakes.corners import CORNERS
from refattn.oracle.mistakes.heads import HEADS
from refattn.oracle.mistakes.latent import LATENT
from refattn.oracle.mistakes.local import LOCAL
from refattn.oracle.mistakes.masks import MASKS
from refattn.oracle.mistakes.packed import PACKED
from refattn.oracle.mistakes.paged import PAGED
from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.mistakes.rotary import ROTARY
from refattn.oracle.mistakes.rounding import ROUNDING
from refattn.oracle.mistakes.scores import SCORES
from refattn.oracle.mistakes.tiling import TILES

CATALOGUE: tuple[Mistake, ...] = (
    MASKS + HEADS + SCORES + TILES + ROUNDING + PACKED + PAGED + LATENT + ROTARY + LOCAL + CORNERS
)

BY_ID = {mistake.id: mistake for mistake in CATALOGUE}
