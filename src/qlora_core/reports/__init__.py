"""What people see of runs, as text and as charts. Knows nothing of marimo."""
