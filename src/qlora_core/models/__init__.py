"""Base models and adapter files: finding and describing them from headers and settings. Loads no weight."""
