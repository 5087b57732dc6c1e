"""What re-expresses a distribution: the rule of each family, implicit paths, supports.

`gdregs.reexpress` is the door; a family is added by registering one function.
It may import what all frameworks share, and nothing else of gdregs.
"""
