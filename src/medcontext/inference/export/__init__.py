"""A trained network for people without medcontext: in a format of its own runtime, with all that belongs to it."""
