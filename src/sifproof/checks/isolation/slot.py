"""``isolation.slot.*``: a slot sees and reaches nothing of another slot of its server."""
