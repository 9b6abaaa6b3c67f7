"""Bytes on disk that survive a power cut: atomic writes, locks, checksums, files that somebody else wrote.

Knows nothing of what the files mean.
"""
