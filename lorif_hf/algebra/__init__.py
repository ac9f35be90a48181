"""Tensors in, tensors out. Knows no model, no file, no Hub."""
