"""Processes that train or answer: plan, start, look after and end them; and the server of the page.

Imports MLX only inside those processes.
"""
