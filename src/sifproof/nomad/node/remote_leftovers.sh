# What the kernel of a node says that belongs to allocations: a process by its environment, its control group, its
# working directory, its root, an open file, a mount made from the allocation's directory, or by being a child of such;
# and mounts. Command lines don't count, nor variables that Nomad does not set: whoever watches a log names them too.
#
# Set before it: ids          the allocations, with spaces between
#                earlier      a line for each process that was found before: allocation, id, start, what gave it away
#                within       seconds to wait for it all to go; empty to tell what there is and no more
#                containers   not empty to ask the Docker engine too
export LC_ALL=C
patterns=
for id in $ids; do patterns="$patterns -e $id"; done
own=$(readlink /proc/self/ns/mnt)

# "KIND PID TEXT" for each trace in which one of the allocations occurs
traces() {
  for file in $(grep -lsF $patterns /proc/[0-9]*/environ); do
    pid=${file#/proc/}
    pid=${pid%/environ}
    tr '\0\n' '\n ' <"$file" 2>/dev/null | sed -nE "s/^(NOMAD_|HOME=|SIFPROOF_NOMAD=)/environment $pid &/p"
  done
  grep -HsF $patterns /proc/[0-9]*/cgroup | sed 's|^/proc/\([0-9]*\)/cgroup:|cgroup \1 |'
  ls -ld /proc/[0-9]*/cwd 2>/dev/null | sed -n 's|^.* /proc/\([0-9]*\)/cwd -> |cwd \1 |p'
  ls -ld /proc/[0-9]*/root 2>/dev/null | sed -n 's|^.* /proc/\([0-9]*\)/root -> |root \1 |p'
  ls -l /proc/[0-9]*/fd 2>/dev/null |
    awk '/^\/proc\/[0-9]+\/fd:$/ { split($0, part, "/") } / -> / { sub(/.* -> /, ""); print "file", part[3], $0 }'
  # the fourth field: every copy of the mount table names the directories that are mounted on
  grep -HsF $patterns /proc/[0-9]*/mountinfo | sed 's|^/proc/\([0-9]*\)/mountinfo:|\1 |' |
    awk -v ids="$ids" 'BEGIN { many = split(ids, id, " ") }
      { for (n = 1; n <= many; n++) if (index($5, id[n])) print $1, $5 }' |
    while read -r pid from; do
      [ "$(readlink "/proc/$pid/ns/mnt" 2>/dev/null)" = "$own" ] || printf 'mount %s %s\n' "$pid" "$from"
    done
}

# the name of the file that it runs, which it can't choose as it does its command line; `-` in a container
program_of() {
  if ! program=$(readlink "/proc/$1/exe" 2>/dev/null); then
    program=$(command_of "$1")
    program=${program%% *}
  elif ! [ "/proc/$1/root" -ef / ]; then
    program=-
  fi
  program=${program% (deleted)}
  printf '%s' "${program##*/}" | tr -s '[:space:]' _
}

command_of() { tr '\0\n' '  ' 2>/dev/null <"/proc/$1/cmdline" | cut -c 1-300; }

# "ALLOCATION PID START KIND" for each process, those found before among them while they live
processes() {
  {
    cat /proc/[0-9]*/stat 2>/dev/null | sed -n 's/^\([0-9]*\) (.*) \([A-Z]\) /stat \1 \2 /p'
    traces | grep -F $patterns |
      awk -v ids="$ids" 'BEGIN { many = split(ids, id, " ") }
        { for (n = 1; n <= many; n++) if (index($0, id[n]) && !seen[id[n], $2]++) print id[n], $2, $1 }' |
      while read -r id pid kind; do
        case "$(program_of "$pid") $(command_of "$pid")" in
        "nomad nomad agent"* | "nomad "*"/nomad agent"*) ;;
        *) printf 'trace %s %s %s\n' "$id" "$pid" "$kind" ;;
        esac
      done
    printf '%s\n' "$earlier" | sed -n 's/^./earlier &/p'
  } | awk '
    $1 == "stat" { parent[$2] = $4; if ($3 != "Z" && $3 != "X") start[$2] = $22; next }
    $1 == "trace" { kind[$2, $3] = $4; next }
    $1 == "earlier" { if (start[$3] == $4 && !(($2, $3) in kind)) kind[$2, $3] = $5 }
    END {
      do {
        added = 0
        for (key in kind) {
          split(key, part, SUBSEP)
          for (pid in parent)
            if (parent[pid] == part[2] && !((part[1], pid) in kind)) { fresh[part[1], pid] = 1; added = 1 }
        }
        for (key in fresh) { kind[key] = "child"; delete fresh[key] }
      } while (added)
      for (key in kind) {
        split(key, part, SUBSEP)
        if (start[part[2]] != "") print part[1], part[2], start[part[2]], kind[key]
      }
    }'
}

mounts() {
  grep -F $patterns /proc/self/mountinfo | while read -r _ _ _ _ point _; do printf '%s\n' "$point"; done
}

end=$(($(date +%s) + ${within:-0}))
while :; do
  found=$(processes)
  mounted=$(mounts)
  if [ -z "$found$mounted" ] || [ "$(date +%s)" -ge "$end" ]; then break; fi
  sleep 0.2
done
printf '%s\n' "$found" | while read -r id pid start kind; do
  [ -z "$kind" ] || printf 'process %s %s %s %s %s %s\n' \
    "$id" "$pid" "$start" "$kind" "$(program_of "$pid")" "$(command_of "$pid")"
done
printf '%s\n' "$mounted" | sed -n 's/^./mount &/p'
if [ -n "$containers" ]; then
  for id in $ids; do
    if listed=$(docker ps --all --filter "label=com.hashicorp.nomad.alloc_id=$id" \
      --format '{{.ID}} {{.Names}} ({{.State}})' 2>&1); then
      printf '%s\n' "$listed" | sed -n "s/^./container $id &/p"
    else
      printf 'unseen %s %s\n' "$id" "$(printf '%s' "$listed" | tr '\n' ' ' | cut -c 1-300)"
    fi
  done
fi
echo end
