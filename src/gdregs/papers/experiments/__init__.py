"""The papers' experiments that need no images, one after the other.

They may import what measures, the core and the VAE; nothing of the image models.
"""
