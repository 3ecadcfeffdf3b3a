"""Searchers, one method each."""
