"""The export of a run: adapters or one model, with everything needed to use them."""
