"""Hypotheses: mistakes of the catalogue, alone or together, that a kernel may have made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from refattn.oracle.bounds.results import RESULTS
from refattn.oracle.mistakes.catalogue import CATALOGUE
from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.mistakes.wrong_kernel import part_outlines, possible

TILES_TO_TRY = (16, 32, 64, 128, 256)
OTHER_TILES = (8, 24, 48, 80, 96, 112, 144, 160, 176, 192, 224, 384, 512, 1024, 2048)
PLAIN_TILE = 1024  # of mistakes to which it makes no difference


@dataclass(frozen=True)
class Hypothesis:
    """Some mistakes together, and the tile size they are tried with. No mistakes: the reference itself."""

    mistakes: tuple[Mistake, ...] = ()
    tile: int = 64

    @property
    def rereads(self) -> tuple[Mistake, ...]:
        """Those that say how the actual result is to be read."""
        return tuple(mistake for mistake in self.mistakes if mistake.reread is not None)

    @property
    def others(self) -> tuple[Mistake, ...]:
        """Those that change what the kernel computes."""
        return tuple(mistake for mistake in self.mistakes if mistake.reread is None)

    @property
    def id(self) -> str:
        return " + ".join(mistake.id for mistake in self.mistakes)

    @property
    def words(self) -> str:
        return " and ".join(mistake.says for mistake in self.mistakes)

    def says_with(self, tiles) -> str:
        """The words with the tile sizes that predict the same."""
        if not any(mistake.tiled for mistake in self.mistakes):
            return self.words
        return f"{self.words} (tile of {' or '.join(map(str, tiles))} keys)"

    @property
    def remedy(self) -> str:
        return ", ".join(mistake.remedy for mistake in self.mistakes if mistake.remedy)

    @property
    def issues(self) -> tuple[str, ...]:
        return tuple(issue for mistake in self.mistakes for issue in mistake.issues)


def single_hypotheses(checked, given, tiles=TILES_TO_TRY, tiled_only: bool = False) -> Iterator[Hypothesis]:
    """Every mistake that can show on this problem in one of the given results, with every tile size it
    depends on.
    """
    keys = max((part.kv_len for part in part_outlines(checked)), default=0)
    for mistake in CATALOGUE:
        missing = any(result.name in mistake.needs and result not in given for result in RESULTS)
        if mistake.random or missing or not possible(mistake, checked):
            continue
        if mistake.relayout is not None and mistake.reread is None:
            continue
        if tiled_only and not mistake.tiled:
            continue
        sizes = [tile for tile in tiles if tile < keys] or [tiles[0]]
        # what a kernel rounds depends on its tiles
        for tile in sizes if mistake.tiled or mistake.rounding else (PLAIN_TILE,):
            yield Hypothesis((mistake,), tile)
