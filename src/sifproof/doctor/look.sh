# What a machine is like for sandboxes, for the user who runs this: facts, one "key=value" a line, the last "end=ok".
#
# POSIX shell with what every Linux has. What can be tried is tried. Nothing is left behind. Set before it:
#   programs, images, ports   one value a line
#   alloc                     folder of allocations, where Nomad does not name one
#   tmp                       folder for temporary files
#   shared, word              a file on a shared file system, and what it should hold
export LC_ALL=C
unset CDPATH

say() { printf '%s=%s\n' "$1" "$2"; }
told() { printf '%s=no: %s\n' "$1" "$(printf '%s' "$2" | tail -n 3 | tr '\n\r' '  ' | cut -c 1-400)"; }
# The shell's own read takes a byte at a time, and the kernel gives no second byte of such a file.
first() { if [ -r "$2" ]; then say "$1" "$(cat "$2")"; fi; }
# within COMMAND…: whatever hangs is ended, and that is said; a dead file system lets go only of what is killed
limit=10
within() {
  timeout -k 1 "$limit" "$@" </dev/null && return
  code=$?
  case $code in 124 | 137) echo "it did not end within $limit s" >&2 ;; esac
  return $code
}
# try KEY COMMAND…: "ok", or "no: " and the last words of the command
try() {
  key=$1
  shift
  if words=$(within "$@" 2>&1); then say "$key" ok; else told "$key" "${words:-ended with exit code $?}"; fi
}
# the nearest folder above $1 that exists; fails where looking for it hangs
nearest() {
  near=$1
  while [ -n "$near" ]; do
    code=0
    within test -d "$near" 2>/dev/null || code=$?
    case $code in
    0) break ;;
    124 | 137) return 1 ;;
    esac
    near=${near%/*}
  done
  printf '%s' "${near:-/}"
}

file= scratch=
trap '[ -z "$file$scratch" ] || rm -rf "$file" "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

now=$(date +%s.%N)
say time "${now%.*N*}"
say user "$(within id -un 2>/dev/null || id -u)"
say uid "$(id -u)"
say kernel "$(uname -r)"
say machine "$(uname -m)"
while read -r name value _; do
  case $name in
  CapPrm:) say caps.permitted "$value" ;;
  NoNewPrivs:) say no-new-privileges "$value" ;;
  esac
done </proc/self/status
first caps.last /proc/sys/kernel/cap_last_cap
first userns.max /proc/sys/user/max_user_namespaces
first userns.clone /proc/sys/kernel/unprivileged_userns_clone
first userns.apparmor /proc/sys/kernel/apparmor_restrict_unprivileged_userns
if words=$({ : <>/dev/fuse; } 2>&1); then say fuse ok; else told fuse "$words"; fi
try timeout timeout --foreground 5 true

# A namespace in a namespace, each with mounts and processes of its own, as Apptainer and bubblewrap make them. Where
# /proc is covered in part, as in containers, the kernel lets nobody mount it anew: that is not asked for here.
inner='unshare --user --map-root-user --mount --pid --fork true'
if command -v unshare >/dev/null; then
  try userns.one unshare --user --map-root-user --mount --pid --fork true
  try userns.two unshare --user --map-root-user --mount --pid --fork $inner
fi

if [ -r /sys/fs/cgroup/cgroup.controllers ]; then
  say cgroup.version 2
  first cgroup.controllers /sys/fs/cgroup/cgroup.controllers
  first cgroup.enabled /sys/fs/cgroup/cgroup.subtree_control
  [ -w /sys/fs/cgroup/cgroup.subtree_control ] && say cgroup.writable yes
elif [ -d /sys/fs/cgroup/memory ] || [ -d /sys/fs/cgroup/freezer ]; then
  say cgroup.version 1
  say cgroup.controllers "$(cd /sys/fs/cgroup && echo *)"
  { [ ! -d /sys/fs/cgroup/memory ] || [ -w /sys/fs/cgroup/memory ]; } && [ -w /sys/fs/cgroup/freezer ] && say cgroup.writable yes
fi

alloc=${NOMAD_ALLOC_DIR:-$alloc}
for place in alloc tmp shm; do
  case $place in
  alloc) folder=$alloc ;;
  tmp) folder=${tmp:-/tmp} ;;
  shm) folder=/dev/shm ;;
  esac
  [ -n "$folder" ] || continue
  say "$place.path" "$folder"
  folder=$(nearest "$folder") || {
    told "$place.write" "looking for it did not end within $limit s"
    [ "$place" != alloc ] || alloc=
    continue
  }
  [ "$place" != shm ] || [ "$folder" = /dev/shm ] || continue
  words=$(within df -Pk "$folder" 2>&1) || told "$place.df" "$words"
  printf '%s\n' "$words" | while read -r _ _ _ free _ point; do
    case $free in *[!0-9]* | '') continue ;; esac
    say "$place.free-kb" "$free"
    while read -r _ on type options _; do
      # white space and backslashes stand there as octal numbers
      case $on in *\\*) on=$(printf %b "$on") ;; esac
      [ "$on" != "$point" ] || printf '%s.type=%s\n%s.options=%s\n' "$place" "$type" "$place" "$options"
    done </proc/mounts
  done
  if words=$(within mktemp "$folder/.sifproof-XXXXXXXX" 2>&1); then
    file=$words
    say "$place.write" ok
    printf '#!/bin/sh\n' >"$file"
    chmod 700 "$file"
    try "$place.exec" "$file"
    rm -f "$file"
  else
    told "$place.write" "$words"
  fi
done

# A container of this machine's own programs, started as the sandboxes are: no image has to be there for it.
folder=$(nearest "${alloc:-/tmp}") && scratch=$(within mktemp -d "$folder/.sifproof-XXXXXXXX" 2>/dev/null)
contain() {
  within env -i PATH="$PATH" HOME="$scratch/home" TMPDIR="$scratch/home" \
    "$program" -q exec --containall --no-eval "$@" --bind /dev/full $binds "$scratch/root" /bin/sh -c "$inside"
}
if [ -n "$scratch" ]; then
  mkdir "$scratch/home" "$scratch/root"
  (cd "$scratch/root" && mkdir -p dev etc home proc root sys tmp usr var/tmp && : >etc/hosts && : >etc/passwd &&
    : >etc/group && : >etc/resolv.conf)
  binds='--bind /usr:/usr:ro'
  for name in bin lib lib64 sbin; do
    if [ -h "/$name" ]; then
      ln -s "$(readlink "/$name")" "$scratch/root/$name"
    elif [ -d "/$name" ]; then
      mkdir "$scratch/root/$name"
      binds="$binds --bind /$name:/$name:ro"
    fi
  done
fi
number=0
printf '%s\n' "$programs" | while IFS= read -r program; do
  [ -n "$program" ] || continue
  say "program.$number" "$program"
  path=$(command -v "$program" 2>/dev/null) && say "program.$number.path" "$path"
  answers=
  if [ -n "$path" ]; then
    if words=$(within "$program" --version 2>&1); then
      answers=yes
      say "program.$number.version" "$(printf '%s' "$words" | tr '\n' ' ' | cut -c 1-100)"
    else
      told "program.$number.answer" "${words:-ended with exit code $?}"
    fi
  fi
  if [ -n "$answers" ]; then
    built=$(within "$program" buildcfg 2>/dev/null)
    libexec=$(printf '%s\n' "$built" | sed -n 's/^LIBEXECDIR=//p')
    conf=$(printf '%s\n' "$built" | sed -n 's/^APPTAINER_CONF_FILE=//p')
    [ ! -r "$conf" ] || say "program.$number.squashfs" \
      "$(sed -n 's/^[[:space:]]*allow setuid-mount squashfs[[:space:]]*=[[:space:]]*//p' "$conf" | tail -n 1)"
    suid=no
    for starter in "$libexec/apptainer/bin/starter-suid" "$libexec/singularity/bin/starter-suid"; do
      [ ! -u "$starter" ] || suid=yes
    done
    say "program.$number.suid" "$suid"
    if [ -n "$scratch" ]; then
      inside=true
      for mode in plain userns; do
        flag=
        [ "$mode" = plain ] || flag=--userns
        if words=$(contain $flag 2>&1); then
          say "program.$number.$mode" ok
          works=${works-$flag}
        else
          told "program.$number.$mode" "${words:-ended with exit code $?}"
        fi
      done
      if [ -n "${works+x}" ] && command -v unshare >/dev/null; then
        inside=$inner
        if words=$(contain $works 2>&1); then say "program.$number.nested" ok; else
          told "program.$number.nested" "${words:-ended with exit code $?}"
        fi
      fi
      unset works
    fi
  fi
  number=$((number + 1))
done

number=0
for port in $ports; do
  say "port.$number" "$port"
  # local address, remote address, state 0A: it listens
  grep -hi "^ *[0-9]*: [0-9A-F]*$(printf ':%04X' "$port") [0-9A-F]*:[0-9A-F]* 0A " /proc/net/tcp /proc/net/tcp6 \
    2>/dev/null | while read -r _ here _ _ _ _ _ uid _ inode _; do
    holder=$(find /proc/[0-9]*/fd -lname "socket:\[$inode\]" 2>/dev/null | head -n 1)
    holder=${holder#/proc/}
    holder=${holder%%/*}
    line=$([ -z "$holder" ] || within cat "/proc/$holder/cmdline" | tr '\0\n' '  ' | cut -c 1-200)
    say "port.$number.held" "${here%:*} $uid ${holder:-?} $line"
  done
  number=$((number + 1))
done

# Last: a file system that hangs must not keep the rest from being told.
number=0
printf '%s\n' "$images" | while IFS= read -r image; do
  [ -n "$image" ] || continue
  try "image.$number" dd if="$image" of=/dev/null bs=4096 count=1 status=none
  number=$((number + 1))
done
if [ -n "$shared" ]; then
  if ! words=$(within head -n 1 "$shared" 2>&1); then
    told shared "$words"
  elif [ "$words" = "$word" ]; then say shared ok; else told shared "it holds something else"; fi
fi
say end ok
