"""Structured pruning: how many channels go for the compute asked, out of the groups of `edgekd.nn.channels`."""
