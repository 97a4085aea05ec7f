"""What runs the checks: their registry, the policy, the runner, the subject, and what several suites share."""
