"""Bytes: file names, the manifest, shards of factors, the example table. Knows no model and no maths."""
