"""Importances of channels: those that read weights, and those that watch the network on images."""
