"""A server of agent sandboxes over HTTP: slots, each a workspace with tools that run in it, one at a time.

``api``          the HTTP endpoints
``access``       who may use them
``protocol``     what goes over the wire: typed fields of a request, the result of a tool, limits
``slots``        the slots, their locks, and the way of one call through them
``tools``        the tools by name: bash, bash_stateful, read_file, write_file
``shell``        the shell that lives on between the calls of bash_stateful
``containment``  what a command is locked into: bubblewrap, a user per slot, or nothing but its process tree
``directories``  the slots' directories, and those of the server's own that they lie in
``process``      one contained command: its output, its end, and the end of everything it started
``supervisor``   the program that owns a process tree where there is no bubblewrap
``workspace``    files of one slot, never reached through a path that leaves it
``artifacts``    read, list and archive for the artifact endpoints
"""
