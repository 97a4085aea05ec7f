"""What a machine, or a node of a cluster, can and can't do for sandboxes: looked at before anything is submitted."""
