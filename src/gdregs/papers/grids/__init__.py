"""The papers' image models as data, and what trains them: cells, seeds, jobs.

It may import the core and the VAE.
"""
