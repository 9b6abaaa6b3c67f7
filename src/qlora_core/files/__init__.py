"""Bytes on disk that survive a power cut: atomic writes, locks, checksums, and files from untrusted sources.

Knows nothing of what the files mean.
"""
