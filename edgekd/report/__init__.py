"""The page a person reads: one self-contained HTML file made of plain data."""
