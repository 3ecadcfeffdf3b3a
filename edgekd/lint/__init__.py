"""What a device will make of a graph: rules that name a node, the reason and the fix, before anything is built."""
