"""Runs in containers: the engine, images, what is asked of a container, and how it is watched to its end."""
