"""The shell scripts of :mod:`.planted`: POSIX shell and coreutils, for more is not on every node and in every image.

Each prints lines of a word, a tab and the rest, and ends with one that says that it came to its end. A marker is put
together where it is used: a script's own text, which shows in its command line, must not hold what it looks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from shlex import quote

VALUE_BYTES = 200
"""So much of a variable's value is compared."""

ENVIRONMENT_BYTES = 45_000
"""Of the 50,000 characters that the protocol gives a command's output."""

PLANTED = "planted"

_LOCALE = r"(C|POSIX|[A-Za-z]{2,3}(_[A-Za-z]{2})?)([.]([Uu][Tt][Ff]-?8|[Ii][Ss][Oo]-?8859-?[0-9]+))?(@latin|@euro)?"
ORDINARY = (
    r".{0,7}|([.]{0,2}|~[A-Za-z0-9_]*)/.*|[A-Za-z]{0,15}|([0-9]{0,15}[-.:, ])*[0-9]{0,15}"
    rf"|{_LOCALE}(:{_LOCALE})*"
)
"""What two machines may have in common by chance: short values, paths, words, versions and dates, locales.

A regular expression as both grep(1) and Python read it.
"""


def _with(values: Mapping[str, str], script: str) -> str:
    return "".join(f"{name}={quote(value)}\n" for name, value in values.items()) + script


# Runs as the user of the node's Nomad client, in a folder that the sandbox may write (its workspace) only by names
# that a symbolic link there can't turn elsewhere: files are made in the script's own folder, and moved.
#
# A file system that hangs must not keep what was planted elsewhere from being cleared away: all is done by a child,
# while the script itself waits for nothing but the signal to end; and where others' directories are looked at, the
# child does not wait either.
_PLANT = r"""
LC_ALL=C
tab=$(printf '\t')
newline='
'
umask 022
mark=sifproof-$hex
own=${NOMAD_ALLOC_DIR%/*}
allocations=${own%/*}
sandbox=$allocations/$allocation
workspace=$sandbox/alloc/data/$workspace
say() { printf '%s\t%s\n' "$1" "$2"; }
eval "home=~$(id -un)"

each_place() { # what to do with a name and a folder
    case $home in /?*) "$1" home "$home" ;; esac
    case $HOME in "$home") ;; /?*) "$1" home "$HOME" ;; esac
    "$1" workdir "$sandbox/$task"
    for folder in $agent_folders; do "$1" workdir "$folder"; done
    "$1" tmp /tmp
    "$1" var-tmp /var/tmp
    "$1" dev-shm /dev/shm
    "$1" allocations "$own"
    for folder in "${allocations%/*}" $state_folders; do "$1" nomad-data "$folder"; done
}
plant() {
    if [ ! -d "$2" ]; then say absent "$1 $2"
    elif (echo "$mark" > "$2/.$mark-$1") 2>/dev/null; then say place "$1 $2/.$mark-$1"
    else say closed "$1 $2"
    fi
}
uproot() { rm -f "$2/.$mark-$1" "$2/.$mark-inside" & removing="$removing $!"; }
clear() {
    trap '' TERM
    kill -KILL "$planting" $! 2>/dev/null
    kill $(cat "$own/processes") 2>/dev/null
    each_place uproot 2>/dev/null
    rm -rf "$workspace/.$mark-own" "$workspace/.$mark-closed" "$NOMAD_SECRETS_DIR/variables"
    if [ -s "$own/shm" ]; then ipcrm -m "$(cat "$own/shm")"; fi
    wait $removing
    exit "$code"
}
planting= removing= agent_folders= state_folders= code=0

# The agent and what stands between it and this script: whose environment a task may come to see.
agents=
pid=$$
while [ "$pid" -gt 1 ]; do
    read -r name < "/proc/$pid/comm"
    agents="$agents $pid"
    folder=$(readlink "/proc/$pid/cwd")
    case $name in nomad*)
        case $folder in / | *[[:space:]]*) ;; /*) agent_folders="$agent_folders $folder" ;; esac
        # Where the client keeps its state, wherever `alloc_dir` is: open as long as it runs.
        state=$(ls -l "/proc/$pid/fd" | sed -n 's|.* -> \(/[^[:space:]]*\)/state\.db$|\1|p' | sort -u)
        state_folders="$state_folders $state" ;;
    esac
    while read -r key value; do
        if [ "$key" = PPid: ]; then pid=$value; fi
    done < "/proc/$pid/status"
done

# The directories of the node that no sandbox is given: by device and inode, which a bind mount does not change. What
# is mounted from another machine, or when it is asked for, may not answer for hours: by its mount alone.
look_at_directories() {
    mounts=
    while read -r _ _ device root point options rest; do
        kind=${rest#*- }
        mounts="$mounts$newline${kind%% *} $device $root $point"
    done < /proc/self/mountinfo
    {
        echo /
        for folder in /*; do
            case $folder in /proc | /sys | /dev | /tmp) ;; *) echo "$folder" ;; esac
        done
        while IFS=: read -r name _ id _ _ folder _; do
            case $folder in /?*) if [ "$id" -ge 1000 ] && [ "$id" -lt 60000 ]; then echo "$folder"; fi ;; esac
        done < /etc/passwd
    } | sort -u | head -n 500 | while read -r folder; do
        over= length=0
        IFS=$newline
        for mount in $mounts; do
            point=${mount##* }
            case $point in *\\*) point=$(printf '%b' "$point") ;; esac
            case $folder/ in "${point%/}"/*)
                if [ ${#point} -ge $length ]; then length=${#point} over=$mount; fi ;;
            esac
        done
        unset IFS
        case ${over%% *} in
            autofs | nfs* | cifs | smb* | ceph | lustre | beegfs* | gpfs | afs | glusterfs | fuse | fuse.*)
                if [ "$length" -gt 1 ]; then say far "${over#* } $folder"; continue; fi ;;
        esac
        # A marker in a home that the user may write tells more.
        case $folder in "$home" | "$HOME") if [ -w "$folder" ]; then continue; fi ;; esac
        if [ -d "$folder" ]; then stat -L -c "directory$tab%d:%i %n" "$folder" 2>/dev/null; fi
    done
}

work() {
{ look_at_directories > "$own/directories"; : > "$own/looked"; } &
echo $! > "$own/processes"
each_place plant
echo "$mark" > "$own/own" && mv "$own/own" "$workspace/.$mark-own" && say own "$workspace/.$mark-own"
say workspace "$workspace"
say user "$(id -u)"
if [ "$(id -u)" = 0 ]; then
    # Of a user of the node that no sandbox is, and closed to all.
    echo "$mark" > "$own/closed" && chown 65533:65533 "$own/closed" && chmod 0 "$own/closed" \
        && mv "$own/closed" "$workspace/.$mark-closed" && say closed-file "$workspace/.$mark-closed"
fi

# A process with a marker in its arguments and one in its environment; a signal that nobody minds leaves a file.
SIFPROOF_PLANTED=planted-$hex-environment sh -c '
    trap "echo > \"\$1\"" WINCH
    trap "echo > \"\$2\"" URG
    trap "kill \$sleeping; exit" TERM
    while :; do sleep 900 & sleeping=$!; wait $sleeping; done
' "planted-$hex-argument" "$own/tried" "$own/signalled" > /dev/null 2>&1 &
process=$!
echo "$process" >> "$own/processes"
# Shown to work before it counts that a slot's signal has no effect.
tries=0
until [ -e "$own/tried" ] || [ "$tries" = 200 ]; do
    kill -WINCH "$process"
    sleep 0.02
    tries=$((tries + 1))
done
if [ -e "$own/tried" ]; then say process "$process"; fi
say signalled "$own/signalled"

say ipc-namespace "$(readlink /proc/self/ns/ipc)"
if command -v ipcmk > /dev/null && shm=$(ipcmk -M 64 -p 0600 | tr -dc 0-9) && [ "$shm" ]; then
    echo "$shm" > "$own/shm"
    while read -r key id rest; do
        if [ "$id" = "$shm" ]; then say shm "$key $id"; fi
    done < /proc/sysvipc/shm
fi

say block "$(find_block)"

# Values of the environment, by checksums that nobody can look up. A value is on disk where secrets are, meanwhile.
# Of one that any machine may have, the name tells too.
variables=$NOMAD_SECRETS_DIR/variables
mkdir "$variables" || exit 1
number=0
for pid in $agents; do
    tr '\0' '\n' < "/proc/$pid/environ" 2>/dev/null
done | sort -u | while IFS= read -r line; do
    name=${line%%=*}
    case $name in
        NOMAD_TOKEN | NOMAD_*KEY* | NOMAD_LICENSE*) ;;
        NOMAD_* | PATH | *_PATH | HOME | PWD | OLDPWD | SHELL | SHLVL | _ | TERM) continue ;;
        USER | LOGNAME | HOST | HOSTNAME) continue ;;
        LANG | LANGUAGE | LC_* | TZ | TMPDIR | MAIL | XDG_* | LS_COLORS | LESS* | PAGER | EDITOR) continue ;;
        COLORTERM | DEBIAN_FRONTEND) continue ;;
    esac
    value=${line#*=} kind=variable with=
    case $value in '' | ? | ?? | ??? | ???? | ?????) continue ;; esac
    # By bytes, as whoever compares the sums does it.
    if printf '%s\n' "$value" | LC_ALL=C grep -Eqx -e "$ordinary"; then
        # Apptainer takes these off, and hands on the rest.
        name=${name#APPTAINERENV_} name=${name#SINGULARITYENV_}
        case $line in *=*) kind=ordinary with=$name= ;; *) continue ;; esac
    fi
    case $name in *[!A-Za-z0-9_]*) name=_ ;; esac
    number=$((number + 1))
    printf "%s%s%.${value_bytes}s" "$hex" "$with" "$value" > "$variables/$kind.$number.$name"
done
(cd "$variables" && sha256sum -- * 2>/dev/null | while read -r sum name; do say "${name%%.*}" "$sum ${name##*.}"; done)
rm -rf "$variables"
say environment "$(command -v grep > /dev/null && command -v sha256sum)"

tries=0
until [ -e "$own/looked" ] || [ "$tries" = 200 ]; do
    sleep 0.05
    tries=$((tries + 1))
done
cat "$own/directories"
if [ ! -e "$own/looked" ]; then say unlooked 'what comes after it, for it did not answer within 10 s'; fi
echo planted
}

trap clear TERM INT
work & planting=$!
wait "$planting" || { code=1; clear; }
while :; do sleep 900 & wait $!; done
"""


_FIND_BLOCK = r"""
find_block() { # the largest block device of the node
    most=0 found=
    while read -r major minor blocks name; do
        case $blocks in *[!0-9]* | '') continue ;; esac
        if [ "$blocks" -gt "$most" ]; then most=$blocks found="$major $minor"; fi
    done < /proc/partitions
    echo "$found"
}
"""


def plant(hex: str, *, allocation: str, task: str, workspace: str) -> str:
    """What runs on the node, until it is told to end; :data:`PLANTED` is the line that says that all is planted."""
    values = {"hex": hex, "allocation": allocation, "task": task, "workspace": workspace}
    return _with({**values, "value_bytes": str(VALUE_BYTES), "ordinary": ORDINARY}, _FIND_BLOCK + _PLANT)


_LOOK_AFTER = r"""
say() { printf '%s\t%s\n' "$1" "$2"; }
mark=.sifproof-$hex-inside
while read -r name folder; do
    [ "$name" ] || continue
    if [ -e "$folder/$mark" ]; then say arrived "$name $folder/$mark"; fi
done <<END
$places
END
if [ -e "$workspace/$mark" ]; then say arrived "own $workspace/$mark"; fi
if [ -e "$signalled" ]; then say signalled ''; fi
say end ''
"""


def look_after(hex: str, places: Iterable[str], *, workspace: str, signalled: str) -> str:
    """What looks on the node for the marks that the sandbox left; ``places`` are lines of a name and a folder."""
    values = {"hex": hex, "places": "\n".join(places), "workspace": workspace, "signalled": signalled}
    return _with(values, _LOOK_AFTER)


_FIND_POINTS = r"""
say() { printf '%s\t%s\n' "$1" "$2"; }
newline='
'
tab=$(printf '\t')
points=/ procs=
while read -r _ _ device root point options rest; do
    tell far "$device $root $point"
    case $point in *\\*) point=$(printf '%b' "$point") ;; esac
    case $rest in *'- proc '*) procs="$procs$newline$point" ;; esac
    tell mount "$options $point"
    case $point in / | /proc/* | /sys/*) ;; *) points="$points$newline$point" ;; esac
done < /proc/self/mountinfo
"""

_LOOK = r"""
mark=.sifproof-$hex
# Through a process that is outside, all of its files can be reached.
number=0
for other in /proc/[0-9]*; do
    if [ "$number" -lt 40 ] && [ -e "$other/root/." ]; then
        number=$((number + 1))
        points="$points$newline$other/root$newline$other/cwd"
    fi
done
set -f
IFS=$newline

seek() { # a word, a name, a path of the node: whether its end is below a mount point, whatever its beginning is here
    end=$3
    while :; do
        for point in $points "$start"; do
            if [ -e "${point%/}$end" ]; then
                say "$1" "$2 ${point%/}$end"
                seen="$seen$newline${point%/}${end%/*}"
                return
            fi
        done
        case ${end#/} in */*) end=/${end#/*/} ;; *) return ;; esac
    done
}
start=$PWD seen=
for line in $places; do
    path=/${line#*/}
    seek visible "${line%% *}" "$path"
    seen="$seen$newline${path%/*}"
done
seek own own "$own"
if cat "$start/$mark-closed" > /dev/null 2>&1; then say closed-file read; fi

# The other way round.
for folder in $start /tmp /var/tmp /dev/shm /root $HOME $seen; do
    if (: > "$folder/$mark-inside") 2>/dev/null; then say wrote "$folder/$mark-inside"; fi
done

if [ "$process" ]; then kill -URG "$process" 2>/dev/null; fi
holds() { while IFS= read -r line; do case $line in *"$1"*) return 0 ;; esac; done; return 1; }
for proc in $procs; do
    set +f
    if cat "$proc"/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | holds "planted-$hex-argument"; then
        say process "its arguments, in $proc"
    fi
    if cat "$proc"/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | holds "planted-$hex-environment"; then
        say process "its environment, in $proc"
    fi
    set -f
done
if command -v cat > /dev/null && command -v tr > /dev/null; then say processes ''; fi
say ipc-namespace "$(readlink /proc/self/ns/ipc 2>/dev/null)"
if [ -r /proc/sysvipc/shm ]; then
    say shm-list ''
    IFS=' '
    while read -r key id _; do
        if [ "$key $id" = "$shm" ]; then say shm "$key $id"; fi
    done < /proc/sysvipc/shm
    IFS=$newline
fi

# Opened, and neither read nor written.
set +f
for point in $points; do
    for device in "${point%/}"/dev/* "${point%/}"/dev/*/*; do
        case $device in
            */dev/mem | */dev/kmem | */dev/port) [ -c "$device" ] || continue ;;
            *) [ -b "$device" ] || continue ;;
        esac
        if (: < "$device") 2>/dev/null; then say device "$device"; else say closed-device "$device"; fi
    done
done
IFS=' '
[ "$block" ] || block=$(find_block 2>/dev/null)
if [ "$block" ] && command -v mknod > /dev/null; then
    say mknod "$block"
    if mknod "$start/$mark-block" b $block 2>/dev/null && (: < "$start/$mark-block") 2>/dev/null; then
        say device "one made by mknod ($block)"
    fi
fi
rm -f "$start/$mark-block"
IFS=$newline

for file in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/hotplug \
    /proc/sys/kernel/usermodehelper/* /proc/sys/kernel/panic* /proc/sys/kernel/sysrq /proc/sys/fs/binfmt_misc/register \
    /proc/sys/fs/suid_dumpable /proc/sys/fs/file-max /proc/sys/vm/drop_caches /proc/sys/vm/overcommit_memory \
    /sys/kernel/uevent_helper /sys/power/state /sys/module/*/parameters/* /sys/fs/cgroup/cgroup.procs \
    /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/*/release_agent; do
    if [ -w "$file" ] && (: >> "$file") 2>/dev/null; then say writable-setting "$file"; fi
done | head -n 50
if [ -d /proc/sys/kernel ]; then say settings ''; fi
if (: < /proc/kcore) 2>/dev/null; then say writable-setting '/proc/kcore, for reading'; fi

for folder in / /etc /usr /usr/bin /usr/lib /usr/local/bin /bin /sbin /lib /opt /var/lib; do
    [ -d "$folder" ] || continue
    say root-folder "$folder"
    if mkdir "${folder%/}/$mark-root" 2>/dev/null; then say writable-root "$folder"; fi
done

for point in $points; do
    for socket in "${point%/}"/run/docker.sock "${point%/}"/run/containerd/containerd.sock \
        "${point%/}"/run/podman/podman.sock "${point%/}"/run/crio/crio.sock "${point%/}"/run/buildkit/buildkitd.sock \
        "${point%/}"/run/user/*/docker.sock "${point%/}"/run/user/*/podman/podman.sock \
        "${point%/}"/var/run/docker.sock "${point%/}"/docker.sock "${point%/}"/podman.sock; do
        if [ -S "$socket" ] && [ -w "$socket" ]; then say engine "$socket"; fi
    done
    if [ -S "$point" ] && [ -w "$point" ]; then
        case $point in *docker.sock | *podman.sock | *containerd.sock | *crio.sock) say engine "$point" ;; esac
    fi
done

set -f
folders=
for point in $points; do folders="$folders$newline${point%/}/."; done
set +f
for folder in /*/ /home/*/; do folders="$folders$newline${folder%/}/."; done
set -f
stat -c "directory$tab%d:%i %n" $folders 2>/dev/null

unset IFS
while read -r key value; do
    case $key in Uid: | Cap*: | NoNewPrivs:) say "${key%:}" "$value" ;; esac
done < /proc/self/status
while read -r line; do say map "$line"; done < /proc/self/uid_map
say end ''
"""


def look(hex: str, *, places: Iterable[str], own: str, process: str, shm: str, block: str) -> str:
    """What looks around in a slot; ``places`` are lines of a name and the path of a marker on the node."""
    values = {"hex": hex, "places": "\n".join(places), "own": own, "process": process, "shm": shm, "block": block}
    return _with(values, 'tell() { say "$@"; }\n' + _FIND_POINTS + _FIND_BLOCK + _LOOK)


def look_at_environment(own: str) -> str:
    """What prints every variable that a slot sees: its own, and those of all processes that show theirs.

    ``own`` is the value of one that it must find.
    """
    return (
        f"export sifproof_own={quote(own)}\ntell() {{ :; }}\n"
        + _FIND_POINTS
        + rf"""
IFS=$newline
{{
    env
    for proc in $procs; do cat "$proc"/[0-9]*/environ 2>/dev/null | tr '\0' '\n'; done
}} | cut -c 1-{VALUE_BYTES + 200} | sort -u | head -c {ENVIRONMENT_BYTES}
echo
say end ''
"""
    )


_CLEAR = r"""
say() { printf '%s\t%s\n' "$1" "$2"; }
IFS='
'
for folder in $roots; do
    if [ -d "${folder%/}/.sifproof-$hex-root" ]; then say kept-root "$folder"; fi
    rmdir "${folder%/}/.sifproof-$hex-root" 2>/dev/null
done
for folder in . /tmp /var/tmp /dev/shm /root $HOME $folders; do rm -f "$folder/.sifproof-$hex-inside" 2>/dev/null; done
say end ''
"""


def clear(hex: str, folders: Iterable[str], roots: Iterable[str]) -> str:
    """What removes in a slot the marks that :func:`look` left, wherever it may have written some.

    It tells those of ``roots``, directories of the root file system, where one is still there.
    """
    return _with({"hex": hex, "folders": "\n".join(dict.fromkeys(folders)), "roots": "\n".join(roots)}, _CLEAR)


# Requests over HTTP, by whatever program an image or a node has for it; `authorization` is the header of that name, and
# `extra` one more, whole. By python3 alone to a Unix socket, whose host is `unix:PATH`, with @ before an abstract name.
_WAYS = r"""
export LC_ALL=C
say() { printf '%s\t%s\n' "$1" "$2"; }
carriage=$(printf '\r')
authorization= extra=
in_url() { # a host
    case $1 in *:*) printf '[%s]' "$1" ;; *) printf %s "$1" ;; esac
}
by_bash() { # method scheme host port path body
    [ "$2" = http ] || return 1
    timeout 3 bash -c 'exec 3<> "/dev/tcp/$1/$2" && printf %s "$3" >&3 && head -c 2000 <&3' - "$3" "$4" \
        "$1 $5 HTTP/1.0$carriage
Host: $(in_url "$3"):$4$carriage
Content-Type: application/json$carriage
${authorization:+Authorization: $authorization$carriage
}${extra:+$extra$carriage
}Content-Length: ${#6}$carriage
$carriage
$6"
}
by_python3() {
    authorization=$authorization extra=$extra timeout 5 python3 -c '
import http.client, os, socket, ssl, sys
method, scheme, host, port, path, body = sys.argv[1:]
kind = http.client.HTTPConnection
more = {}
if scheme == "https":
    kind, more = http.client.HTTPSConnection, {"context": ssl._create_unverified_context()}
headers = {"Content-Type": "application/json"}
if os.environ["authorization"]:
    headers["Authorization"] = os.environ["authorization"]
if os.environ["extra"]:
    name, _, value = os.environ["extra"].partition(": ")
    headers[name] = value
at = host[5:].replace("@", "\0", 1) if host.startswith("unix:") else ""
connection = kind("localhost" if at else host, int(port), timeout=3, **more)
try:
    if at:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(3)
        connection.sock.connect(at)
    connection.request(method, path, body.encode(), headers)
    answer = connection.getresponse()
except OSError as error:
    sys.exit(str(error))
print("HTTP/1.1", answer.status, answer.reason)
print(answer.read(2000).decode("latin-1"))
' "$@"
}
by_curl() {
    curl -qgksS --path-as-is -i -m 3 --noproxy '*' -X "$1" -H 'Content-Type: application/json' \
        ${authorization:+-H} ${authorization:+"Authorization: $authorization"} ${extra:+-H} ${extra:+"$extra"} \
        --data-binary "$6" \
        "$2://$(in_url "$3"):$4$5"
}
by_wget() { # of the options that busybox knows too
    case $1 in POST) set -- "$@" "--post-data=$6" ;; esac
    timeout 5 wget -S -O /dev/null -T 3 ${7:+"$7"} --header='Content-Type: application/json' \
        ${authorization:+"--header=Authorization: $authorization"} ${extra:+"--header=$extra"} --no-check-certificate \
        "$2://$(in_url "$3"):$4$5" 2>&1 | sed -n 's|.*\(HTTP/1\.[01] [0-9][0-9][0-9].*\)|\1|p'
}
by_nc() {
    [ "$2" = http ] || return 1
    printf '%s %s HTTP/1.0\r\nHost: %s:%s\r\nContent-Length: %s\r\n%s\r\n%s' "$1" "$5" "$(in_url "$3")" "$4" "${#6}" \
        "${authorization:+Authorization: $authorization$carriage
}${extra:+$extra$carriage
}" "$6" | timeout 3 nc "$3" "$4"
}
# Docker's bridge has the node at the gateway.
gateways() {
    while read -r _ destination gateway _; do
        if [ "$destination" = 00000000 ] && [ "$gateway" != 00000000 ]; then
            d=${gateway%??????} rest=${gateway#??}
            c=${rest%????} rest=${rest#??}
            echo "$((0x${rest#??})).$((0x${rest%??})).$((0x$c)).$((0x$d))"
        fi
    done < /proc/net/route
}
"""

_ASK = r"""
works() { # a host and a port where somebody certainly answers: a tool by which he can be reached is a way to ask
    for tool in bash python3 curl wget nc; do
        case "$tool $schemes" in bash*https* | nc*https*) continue ;; esac
        command -v "$tool" > /dev/null || continue
        case $tools in *" $tool"*) ;; *) tools="$tools $tool" ;; esac
        case "$(by_$tool GET http "$1" "$2" /health '' 2>/dev/null)" in HTTP/*) way=$tool; return ;; esac
    done
    return 1
}
listen() { # prints the port
    python3 -c '
import http.server, threading
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
print(server.server_port, flush=True)
threading.Timer(20, server.shutdown).start()
server.serve_forever()
'
}
way= port=
works "$own_host" "$own_port"
if [ -z "$way" ] && command -v python3 > /dev/null; then
    # The slot may have no network. Then a program that reaches one who listens in it is as good, to show it.
    listen > .sifproof-port 2>/dev/null & listening=$!
    tries=0
    until read -r port < .sifproof-port || [ "$tries" = 100 ]; do sleep 0.05; tries=$((tries + 1)); done
    if [ "$port" ] && works 127.0.0.1 "$port"; then say cut ''; fi
    kill "$listening"
    rm -f .sifproof-port
fi
say tools "$tools"
say way "$way"
ask() { # address method path body
    address=${1#*://}
    host=${address%:*} host=${host#[} host=${host%]}
    answer=$(by_$way "$2" "${1%%://*}" "$host" "${address##*:}" "$3" "$4" 2>/dev/null | head -n 1)
    say answer "$1 $2 $3 ${answer%"$carriage"}"
}
for address in $(gateways); do
    case $at_gateway in ?*) targets="$targets ${at_gateway%%GATEWAY*}$address${at_gateway##*GATEWAY}" ;; esac
done
if [ "$way" ]; then
    for target in $targets; do
        for path in /v1/jobs /v1/nodes /v1/agent/self; do ask "$target" GET "$path" ''; done
        ask "$target" POST "/v1/job/$job/plan" "$plan"
    done
fi
say end ''
"""


def ask(*, own_host: str, own_port: int, targets: Iterable[str], gateway: str, job: str, plan: str) -> str:
    """What asks, in a slot, the HTTP API of Nomad's agents at ``targets`` without a token.

    ``gateway``, where it is given, is one more of them, with the word GATEWAY for that of the slot's network.
    """
    addresses = list(targets)
    values = {
        "own_host": own_host,
        "own_port": str(own_port),
        "targets": " ".join(addresses),
        "schemes": " ".join(address.partition(":")[0] for address in addresses),
        "at_gateway": gateway,
        "job": job,
        "plan": plan,
        "tools": "",
    }
    return _with(values, _WAYS + _ASK)


_ADDRESSES = r"""
own_addresses() { # of this network but the loopback, as the kernel has them in its tables
    address=
    while read -r kind what more; do
        case "$kind $what $more" in
            '|-- '* | '+-- '*) address=$what ;;
            '/32 host LOCAL'*) [ "$address" = 127.0.0.1 ] || echo "$address" ;;
        esac
    done < /proc/net/fib_trie
    while read -r rest _ _ _ _ device; do
        address=
        scope=
        case $rest in
            00000000000000000000000000000001) continue ;;
            fe80*) scope=%$device ;;
        esac
        while [ "$rest" ]; do
            address=$address:${rest%"${rest#????}"}
            rest=${rest#????}
        done
        echo "${address#:}$scope"
    done < /proc/net/if_inet6
} 2>/dev/null
"""

ADDRESSES = 8
"""So many addresses of a network are tried at most, beside those that are known."""

_USE = r"""
method=POST disguise=
attempt() { # tool host port path body
    tries=$((tries + 1)) body=$5
    case $body in *@NEW@*) body=${body%%@NEW@*}$new.$tries${body#*@NEW@} ;; esac
    answer=$(by_$1 "$method" http "$2" "$3" "$4" "$body" 2>&1 < /dev/null)
    say tried "$tries $1 $2 $3 $4$disguise $(printf %s "$answer" | tr '\n\r\t' '   ' | cut -c 1-1200)"
}
reach() { # host port
    case $reached in *" $1,$2 "*) return ;; esac
    reached="$reached $1,$2 "
    for tool in $tools; do
        case "$1 $tool" in "unix:"*" python3") ;; "unix:"*) continue ;; esac
        attempt "$tool" "$1" "$2" /execute "$first"
        case $answer in
            HTTP/*) way=${way:-$tool $1 $2} ;;
            # The kernel's word, or none: the next would get it too. Else the program may be at fault.
            '' | *[Rr]efused* | *unreachable*) break ;;
        esac
    done
}
say user "$(id -u)"
tools= tries=0 reached= way=
for tool in bash python3 curl nc wget; do
    if command -v "$tool" > /dev/null; then tools="$tools $tool"; fi
    if [ "$tools" ] && [ "$few" ]; then break; fi
done
say tools "$tools"
for target in $targets; do reach "${target%,*}" "${target##*,}"; done
if [ "$gateway_port" ]; then
    for address in $(gateways); do reach "$address" "$gateway_port"; done
fi
if [ "$own_port" ]; then
    for address in $(own_addresses | sort -u | head -n "$most"); do reach "$address" "$own_port"; done
fi
say way "$way"
if [ "$way" ]; then
    while read -r path body; do
        if [ "$path" ]; then attempt $way "$path" "$body"; fi
    done << END
$others
END
    if [ ! "$few" ]; then
        # Past one who looks at the path, the method, or where the request says that it comes from.
        for path in //execute /execute/ /./execute; do attempt $way "$path" "$first"; done
        for method in PUT PATCH GET; do
            disguise="(by_$method)"
            attempt $way /execute "$first"
        done
        attempt $way "$download" ''
        method=POST
        for authorization in 'Bearer sifproof' Bearer 'Basic c2lmcHJvb2Y6'; do
            disguise="(Authorization:_${authorization%% *})"
            attempt $way /execute "$first"
        done
        authorization=
        for extra in 'X-Forwarded-For: 127.0.0.1' 'X-Real-IP: 127.0.0.1' 'Forwarded: for=127.0.0.1'; do
            disguise="(${extra%%:*})"
            attempt $way /execute "$first"
        done
    fi
fi
while read -r file; do
    if [ -r "$file" ]; then say token "$file"; fi
done << END
$token_files
END
say end ''
"""


def use(
    *,
    targets: Iterable[tuple[str, int]],
    own_port: int | None,
    gateway_port: int | None,
    first: str,
    others: Iterable[tuple[str, str]],
    download: str,
    new: str,
    few: bool = False,
    token_files: Iterable[str] = (),
) -> str:
    """What asks a server to work, without a token, by every way that there is to it.

    ``targets`` are hosts and ports; ``own_port`` is tried at the addresses of the network that the script runs in,
    ``gateway_port`` at its gateway. ``first``, a body of ``/execute``, is sent to each by each program; ``others``,
    paths and bodies, to one that answered, and then in disguise; ``download`` is what GET might fetch a file by.
    A host may be ``unix:PATH``. ``@NEW@`` in them stands for a name that begins with ``new`` and ends with
    the number of the attempt. ``few``: by one program alone. It tells which of ``token_files`` can be read.
    """
    values = {
        "targets": " ".join(f"{host},{port}" for host, port in targets),
        "own_port": str(own_port or ""),
        "gateway_port": str(gateway_port or ""),
        "first": first,
        "others": "\n".join(f"{path} {body}" for path, body in others),
        "download": download,
        "new": new,
        "few": "few" if few else "",
        "most": str(ADDRESSES),
        "token_files": "\n".join(token_files),
    }
    return _with(values, _WAYS + _ADDRESSES + _USE)


def list_addresses() -> str:
    """What lists the addresses of the network that it runs in."""
    return _ADDRESSES + "own_addresses\n"


def send(tool: str, host: str, port: str, path: str, body: str) -> str:
    """What sends one request, by a program of which :func:`use` told that it reaches the server."""
    request = " ".join(quote(word) for word in (host, port, path, body))
    return f"{_WAYS}by_{tool} POST http {request} 2>&1 < /dev/null\n:\n"


# Every word that may be the token, by its length alone, and where it stands: the token itself is not told to a slot.
_WORDS = r"""
export LC_ALL=C
words() { # where they stand
    tr '\0' '\n' | grep -aoE "$like" | sort -u | head -n 100 | while read -r word; do echo "$1: $word"; done
}
{
    env | words 'its own environment'
    for file in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do words "/proc/PID/${file##*/}" < "$file"; done | sort -u
    set -- . "$HOME" "${TMPDIR:-/tmp}" /tmp /var/tmp /dev/shm /run /var/log "$data"
    find "$@" -xdev -maxdepth 3 -type f -size -65 | head -n 300 | while read -r file; do words "$file" < "$file"; done
} 2>/dev/null | head -c 40000
"""


def list_words(length: int, characters: str, data: str) -> str:
    """What lists in a slot the words of so many of the ``characters`` at least: in environments, command lines, files.

    ``data`` is the server's data directory, for the case that the slot sees it.
    """
    return _with({"like": f"[{characters}]{{{length},}}", "data": data}, _WORDS)


_AS_NOBODY = r"""
cd /
if [ "$(id -u)" = 0 ]; then
    if setpriv --reuid=65534 --regid=65534 --clear-groups true 2>/dev/null; then
        exec setpriv --reuid=65534 --regid=65534 --clear-groups /bin/sh -c "$script"
    elif su -s /bin/sh nobody -c true 2>/dev/null; then
        exec su -s /bin/sh nobody -c "$script"
    fi
fi
exec /bin/sh -c "$script"
"""


def as_nobody(script: str) -> str:
    """What runs ``script`` as another user than its own, where that is root; an ordinary one can't become another."""
    return _with({"script": script}, _AS_NOBODY)
