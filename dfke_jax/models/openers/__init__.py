"""One file for each kind of model: ``open(where, declared) -> Found``."""
