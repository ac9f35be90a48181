"""What an index would cost and how good it would be, before it is built: from the shapes of a model alone."""
