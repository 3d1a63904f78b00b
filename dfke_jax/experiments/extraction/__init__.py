"""Recipes of extraction through an endpoint, and of defences against it."""
