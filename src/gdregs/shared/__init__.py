"""What every framework shares: the two tables of estimators, and what numbers and names may be.

Nothing here knows of JAX or PyTorch; arrays are whatever the caller has.
It may import nothing of gdregs.
"""
