"""The exact mathematics: one block of rows at a time, in sums of two float64."""
