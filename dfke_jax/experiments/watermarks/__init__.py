"""Recipes of watermarks: marks side by side, their removal, and whether copies inherit them."""
