"""What a user takes away from a run: adapters or one model, with everything needed to use them."""
