"""Dataset inference: was a model made from my data?"""
