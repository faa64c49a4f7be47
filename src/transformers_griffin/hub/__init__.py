"""Publish and load: the way of a draft to others."""
