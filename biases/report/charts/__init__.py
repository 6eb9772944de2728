"""The figures, as plain plotly dictionaries: one module a section of the page, what they share in ``base``."""
