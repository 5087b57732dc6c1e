"""What the VAE is made of: networks, Gaussian layers, likelihoods, and the model of Eq. (20).

It may import the core, and nothing else of the VAE.
"""
