"""Students made of a teacher's own parts: blocks that were replaced by cheaper ones, each trained in its place."""
