"""Conformance suites and toys for those who add a stage, an objective, a proxy, a store or a runtime."""
