"""Golden vectors in files that any language reads."""
