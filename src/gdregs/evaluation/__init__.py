"""What evaluates a bound: look at all samples, choose those that matter, pull the gradient.

Weights, resampling, keys of samples and meshes of devices serve these three steps.
It may import the rooms below: how a distribution is re-expressed, and what all frameworks share.
"""
