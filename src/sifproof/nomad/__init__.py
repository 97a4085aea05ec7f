"""Nomad: job specification, client, submission, teardown, and the agent that a run starts for itself."""
