"""Recurrences: products in, immutable records or converged pairs out.

`lanczos` of a symmetric matrix, `chebyshev` moments; `BlockLanczos` and `GolubKahan` restart around what has converged. A
record holds the few numbers that the recurrence made (T or the moments) and what it rests on. Everything that estimators say
is a pure function of records, so that a spectrum can be stored, merged and looked at again without one more product.
"""
