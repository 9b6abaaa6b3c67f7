"""Views of runs, as text and as charts. Knows nothing of marimo."""
