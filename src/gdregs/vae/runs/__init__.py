"""Run folders: what a run is called, what lies in it, and how it is begun, continued and compared.

It may import training, pictures, settings, networks and data.
"""
