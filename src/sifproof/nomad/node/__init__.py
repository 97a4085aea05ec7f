"""What is asked of a node, or looked for there, by scripts that Nomad runs on it, and on this machine."""
