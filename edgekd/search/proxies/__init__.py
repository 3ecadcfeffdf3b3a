"""Zero-cost proxies, one paper each."""
