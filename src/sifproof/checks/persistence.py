"""What was written is in the allocation's directory, and stays."""
