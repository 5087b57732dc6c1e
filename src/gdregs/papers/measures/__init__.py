"""What is measured and how it is written: moments with their errors, claims, figures, result files.

It may import the core and the VAE.
"""
