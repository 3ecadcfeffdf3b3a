"""JavaScript engines driven from Python: the program they run, the local link to it, and the hosts that run it."""
