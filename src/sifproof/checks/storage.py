"""The file system below the workspaces does what programs expect of one."""
