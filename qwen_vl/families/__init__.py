"""Model families, a module each: what a network is made of, as everything outside `model/` needs to know it."""
