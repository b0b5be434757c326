"""Model families, one module each: the structure of a network, for everything outside of `model/`."""
