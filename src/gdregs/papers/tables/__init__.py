"""The image models beside the published numbers: comparisons, figures, and the page.

It may import the grids, what measures, the core and the VAE.
"""
