"""The SIF holds what the image holds, and it is the one that runs."""
