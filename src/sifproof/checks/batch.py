"""Many calls in one request."""
