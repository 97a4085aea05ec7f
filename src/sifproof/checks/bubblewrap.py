"""Commands are locked into namespaces of their own, and a server that can't do so says so."""
