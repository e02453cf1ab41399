"""The exact mathematics: one block of rows at a time, in unevaluated sums of two float64."""
