"""What a chain of latents does along time: walk it, follow its path, solve its recurrence.

Time is counted in the order in which a chain runs, on the leading axis of everything here.
It may import re-expression and what is shared.
"""
