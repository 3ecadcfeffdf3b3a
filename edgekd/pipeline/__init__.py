"""From what a user asked to a graph, and from a finished run to files: the only floor that knows every stage."""
