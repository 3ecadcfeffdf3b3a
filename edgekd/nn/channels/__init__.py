"""Channels that belong together across layers: found, proved, ranked and cut, for whoever narrows a network."""
