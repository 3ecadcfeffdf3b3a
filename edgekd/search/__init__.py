"""Student search without training: spaces of architectures, proxies that rank them, and evolution under a budget."""
