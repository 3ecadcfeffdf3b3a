"""Reaches boards over ssh: brings the agent and the models there, has them measured there, brings the report home."""
