"""A checkpoint as a Python object that takes images as people have them."""
