"""Recipes of dataset inference: was a model made from somebody's data?"""
