"""A model and a batch in, projected gradients out. Knows no file and no Hub."""
