"""How the strengths of the learned estimators are learned, in both frameworks."""

STRENGTHS = (-1.0, 2.0)
"""Estimates outside are noise of a few draws, as a rule; the optimum of (H.15) can pass 1."""

SETTLING = 3
"""Draws from which the mean gradient alone is learned, before anything is measured against it."""

LARGE = 10_000
"""A model of more numbers does not learn at every step: what that costs outweighs a compilation."""

FIRST, PERIOD = 100, 16
"""It learns at the first steps, when variances change fast, and later at one of so many."""

MARGINS = 0.02, 0.1, 0.1
"""By what share the variance must fall before one choice takes the place of another.

Of one posterior strength for all parameters; of the prior's too; and of strengths of each
parameter's own, whose variance is the least of many and therefore looks smaller than it is.
"""

WORK = 1.0, 1.125
"""What a mix with DReGs takes, and one with GDReGs too, of the naive gradient's work.

For where it is not counted: DReGs costs no more than the naive gradient, a second path an eighth.
"""
