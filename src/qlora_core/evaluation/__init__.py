"""Did training help: questions, measures, how sure a difference is, and what it means in words.

Reads run directories and judges answers and losses that others made. Knows nothing of mlx, nor of how things are shown.
"""
