"""Networks and nothing else: layers, heads, how they are built, saved, loaded, folded and measured."""
