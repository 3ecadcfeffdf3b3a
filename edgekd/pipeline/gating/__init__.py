"""A gate on engines that are at hand: opens them, measures them in turns, and asks the gate's questions."""
