"""Which base models and adapter files exist and what they are, told from headers and settings. Loads no weight."""
