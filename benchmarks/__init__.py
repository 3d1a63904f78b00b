"""How fast the package is, against itself with plain convolutions and against eager PyTorch."""
