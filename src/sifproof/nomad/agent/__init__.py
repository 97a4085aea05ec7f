"""The local Nomad agent that a run starts, its supervisor, and the extra client of the checks that kill one."""
