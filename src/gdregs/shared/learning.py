"""How the strengths of the learned estimators are learned, in both frameworks."""

STRENGTHS = (-1.0, 2.0)
"""Estimates outside are noise of a few draws, as a rule; the optimum of (H.15) can pass 1."""

SETTLING = 3
"""Draws from which the mean gradient alone is learned, before anything is measured against it."""

FIRST, LATE = 100, 4000
"""Every step teaches at first, when variances change fast; from the second on, few do."""

PERIODS = 16, 64
"""Of how many steps one teaches, between the two and from the second on.

The second period is for who follows the mean gradient at every step: a mean over so few steps
would be that of parameters long past, and its error would count as noise.
"""

MARGINS = 0.02, 0.1, 0.1
"""By what share variance times work must fall before one way takes the place of another.

Of one posterior strength for all parameters; of the prior's too; and of strengths of each
parameter's own, whose variance is the least of many and therefore looks smaller than it is.
"""

MOST_WORK = 1.2
"""What a step may take at most of the naive gradient's work, however much noise it removes."""

WORK = 1.0, 1.125
"""What a mix with DReGs takes, and one with GDReGs too, of the naive gradient's work.

For where it is not counted: DReGs costs no more than the naive gradient, a second path an eighth.
"""
