"""The page of `scripts/search.py serve`: a local web server over an index, and its HTML."""
