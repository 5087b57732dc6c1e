"""Data sets: where they come from, and how their files are read.

It may import nothing of gdregs but the errors of the VAE.
"""
