"""Mistakes and foreign conventions, by the part of attention they concern; `catalogue` has them all."""
