"""One small script per system, run by `python -m` with the Python of that system's own environment.

They import what every environment has (torch, transformers, numpy), `..measuring`, and their own system.
"""
