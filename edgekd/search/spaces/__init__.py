"""Search spaces, one family of architectures each."""
