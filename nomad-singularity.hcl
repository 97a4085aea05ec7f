# A Nomad agent for agent sandboxes, on one machine:
#
#     nomad agent -dev -config=nomad-singularity.hcl
#
# Server and client in one process, on 127.0.0.1, state in memory. It takes the ports 4646 to 4648.
# Then, in another terminal:  NOMAD_ADDR=http://127.0.0.1:4646 snakemake --cores 4
#
# The agent that sifproof starts by itself uses this very file; its own ports and directories come on top.
# To turn an existing client into one that can run sandboxes, take over the two plugin blocks.
#
# Whoever may submit a job to a client with raw_exec on runs code as the user of that client. An agent started as
# above takes jobs from everyone who reaches 127.0.0.1: other users of the machine, and whatever runs in a sandbox,
# which shares the machine's network. The agent that sifproof starts by itself asks for a token that only its user
# can read. For your own, where others or images that you don't trust are about:
#
#     acl { enabled = true }
#
# in this file, then `nomad acl bootstrap` at once, before anybody else does, and NOMAD_TOKEN set to its Secret ID.

log_level            = "INFO"
disable_update_check = true

client {
  # Fingerprinters that ask the metadata service of a cloud: each waits for an answer that never comes
  # elsewhere, and the agent is ready only after the last one.
  options = {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }

  # Loopback has ::1 beside 127.0.0.1, and Nomad counts ports per address: a static port that one job has would
  # be given to a second one, on ::1. So no port is free there.
  host_network "ipv6-loopback" {
    cidr           = "::1/128"
    reserved_ports = "1-65535"
  }

  # The local agent lives as long as one run, and teardown reads what is left of a job: nothing is to be
  # collected from under it.
  gc_interval = "1h"
}

# Apptainer runs as a plain child process of Nomad. It must be on the PATH of the agent: tasks inherit that.
plugin "raw_exec" {
  config {
    enabled = true
  }
}

plugin "docker" {
  config {
    # A sandbox with `privileged: true`. Without this, each such task ends in "Driver Failure".
    allow_privileged = true

    # Nomad's own list, and sys_admin for a sandbox with `nested_sandboxes: true`.
    allow_caps = [
      "audit_write", "chown", "dac_override", "fowner", "fsetid", "kill", "mknod", "net_bind_service",
      "setfcap", "setgid", "setpcap", "setuid", "sys_chroot", "sys_admin",
    ]

    # Nomad deletes an image some minutes after its last task, by default. These images are not Nomad's.
    gc {
      image = false
    }

    volumes {
      enabled = true
    }
  }
}
