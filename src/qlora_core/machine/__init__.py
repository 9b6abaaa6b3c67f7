"""This computer: its memory, its cores, its sleep, how its processor treats tiny numbers, why a process died.

Knows nothing of models, runs or training.
"""
