"""Recipes of distillation without the data: transfer sets, synthesised images and generators, beside what real data gives."""
