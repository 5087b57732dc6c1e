"""How the strengths of the learned estimators are learned, in both frameworks."""

STRENGTHS = (-1.0, 2.0)
"""Estimates outside are noise of a few draws, as a rule; the optimum of (H.15) can pass 1."""

SETTLING = 3
"""Draws from which the mean gradient alone is learned, before anything is measured against it."""

FIRST, PERIOD = 100, 16
"""Every step teaches at first, when variances change fast; later on one step in so many."""

WORTH = 0.02, 0.2
"""The share of its variance that an estimator must take away to be worth the time that it takes.

Of one posterior strength for all parameters, which costs no more than the naive estimator does; and
of the prior's too, or of strengths of each parameter's own, which take a second path.
"""
