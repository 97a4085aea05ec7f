"""Whatever a client sends, the server answers as documented and stays healthy."""
