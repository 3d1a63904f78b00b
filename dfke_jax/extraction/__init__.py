"""Black-box extraction: one file an attack."""
