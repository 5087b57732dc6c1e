"""What people look at: pictures, tables and progress bars.

It may import everything else of the VAE but run folders.
"""
