"""What is collected from a workspace is what lies there."""
