"""A slot that is reset is as new, and no other slot is."""
