"""``isolation.host.*``: a sandbox sees and reaches nothing of the node that it was not given."""
