"""Commands of ``dfke`` that are more than a few lines: their options, and what they do."""
