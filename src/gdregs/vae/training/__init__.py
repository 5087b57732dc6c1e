"""Training and evaluation: whole epochs under one scan, on one device, a mesh, or many processes.

It may import the core, the networks, the data and the settings.
"""
