"""What the examples share: text that every CPython carries, small models, word overlap, pictures.

Nothing here knows lorif-hf: what an example shows of it stands in the example.
"""
