#!/bin/sh
# Makes a machine ready for Seatrial; changes nothing where all is so already. `seatrial node undo` takes away what it adds.
set -u
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
record=/var/lib/seatrial/added
outcome=same
tell() { printf '@@seatrial\t%s\t%s\t%s\n' "$1" "$2" "$3"; }
changed() { [ "$outcome" = same ] && outcome=changed; return 0; }
warn() { words="$*"; [ "$outcome" = failed ] || outcome=warned; }
fail() { words="$*"; outcome=failed; return 1; }
sum_of() { sha256sum "$1" | cut -d' ' -f1; }

keep() {
    [ -d "${record%/*}" ] || mkdir -p -m 755 "${record%/*}"
    grep -qxF -- "$*" "$record" 2>/dev/null || printf '%s\n' "$*" >>"$record"
}
packages() {
    missing=
    for package; do
        case "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" in ii*) ;; *) missing="$missing $package" ;; esac
    done
    [ -n "$missing" ] || return 0
    before=$(mktemp) && after=$(mktemp) || return 1
    dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n' | sed -n 's/ ii.*//p' | sort >"$before"
    get="apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300"
    $get $missing >/dev/null 2>&1 || { apt-get update -qq >/dev/null 2>&1 && $get $missing >/dev/null 2>"$after"; } ||
        { fail "apt-get install$missing: $(tail -n 1 "$after")"; return 1; }
    dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n' | sed -n 's/ ii.*//p' | sort >"$after"
    for package in $(comm -13 "$before" "$after"); do keep "package $package"; done
    rm -f "$before" "$after"
    words="installed:$missing"
    changed
}
directory() {
    if [ -d "$1" ]; then
        mode=$(stat -c %a "$1")
        [ "$mode" = "$2" ] || warn "$1 was there with mode $mode; it stays so"
        return 0
    fi
    [ -e "$1" ] && { fail "$1 is there and is no directory"; return 1; }
    parents=
    above=$1
    while [ ! -e "$above" ]; do parents="$above $parents"; above=${above%/*}; [ -n "$above" ] || break; done
    for path in $parents; do mkdir -m 755 "$path" && keep "directory $path" || { fail "$path can't be made"; return 1; }; done
    chmod "$2" "$1"
    changed
}
put() {
    new=$(mktemp) && cat >"$new" || return 1
    if [ -e "$1" ]; then
        if cmp -s "$new" "$1"; then rm -f "$new"; return 0; fi
        if ! grep -q "^file [0-9a-f]* $1\$" "$record" 2>/dev/null; then rm -f "$new"; fail "$1 is there and not Seatrial's"; return 1; fi
        if ! grep -qxF "file $(sum_of "$1") $1" "$record"; then rm -f "$new"; warn "$1 was changed by somebody; it stays so"; return 0; fi
        sed -i "\\|^file [0-9a-f]* $1\$|d" "$record"
    fi
    above=${1%/*}
    [ -d "$above" ] || directory "$above" 755 || return 1
    cp "$new" "$1" && chmod "$2" "$1" || { fail "$1 can't be written"; return 1; }
    rm -f "$new"
    keep "file $(sum_of "$1") $1"
    changed
}
settings() {
    [ "$outcome" = changed ] || return 0
    sysctl -q -p "$1" >/dev/null 2>&1 || warn "written, and not all could be set now (a container?); they hold after a restart"
}
venv() {
    prefix=$1 interpreter=$2 version=$3 what=$4
    shift 4
    if [ "$("$prefix/venv/bin/python" -c 'import seatrial; print(seatrial.__version__)' 2>/dev/null)" = "$version" ]; then return 0; fi
    if [ -e "$prefix/venv" ] && ! grep -qxF "tree $prefix/venv" "$record" 2>/dev/null; then fail "$prefix/venv is there and not Seatrial's"; return 1; fi
    directory "$prefix" 755 || return 1
    keep "tree $prefix/venv"
    log=$(mktemp)
    "$interpreter" -m venv --clear "$prefix/venv" >"$log" 2>&1 || { fail "$interpreter -m venv: $(tail -n 1 "$log")"; return 1; }
    "$prefix/venv/bin/python" -m pip install -q "$@" "$what" >"$log" 2>&1 || { fail "pip install $what: $(grep -v '^WARNING' "$log" | tail -n 1)"; return 1; }
    rm -f "$log"
    "$prefix/venv/bin/python" -c 'import seatrial' 2>/dev/null || { fail "pip went well, and seatrial can't be imported"; return 1; }
    words="$what"
    changed
}
service() {
    keep "service $1"
    [ -d /run/systemd/system ] || { warn "written; no systemd runs here, so it was not started"; return 0; }
    if [ "$outcome" = changed ]; then systemctl daemon-reload; fi
    systemctl is-active -q "$1" && [ "$outcome" = same ] && return 0
    systemctl enable -q --now "$1" || { fail "systemctl enable --now $1"; return 1; }
    changed
}
run_step() {
    outcome=same words=
    "step_$1"
    tell "$1" "$outcome" "$words"
    [ "$outcome" != failed ] || bad=1
}
bad=0

# base packages
step_packages() {
packages ca-certificates curl git jq numactl pciutils rsync tmux python3 python3-venv python3-dev
}

# scratch directory /scratch/seatrial
step_scratch() {
directory /scratch/seatrial 1777
}

# durable directory /srv/seatrial/runs
step_durable() {
directory /srv/seatrial/runs 1777
}

# open files and locked memory
step_limits() {
put /etc/security/limits.d/90-seatrial.conf 0644 <<'SEATRIAL_END'
# RDMA locks what it sends from; the loader opens a file a worker and shard.
* soft memlock unlimited
* hard memlock unlimited
root soft memlock unlimited
root hard memlock unlimited
* soft nofile 1048576
* hard nofile 1048576
root soft nofile 1048576
root hard nofile 1048576
SEATRIAL_END
}

# kernel settings
step_sysctl() {
put /etc/sysctl.d/90-seatrial.conf 0644 <<'SEATRIAL_END'
# Ranks of many nodes meet at one port at once.
net.core.somaxconn = 4096
# Data sets of many mapped files.
vm.max_map_count = 1048576
SEATRIAL_END
settings /etc/sysctl.d/90-seatrial.conf
}

# environment of training, from what is here
step_environment() {
put /etc/profile.d/seatrial.sh 0644 <<'SEATRIAL_END'
# Written by seatrial node bootstrap, from what this machine is; `seatrial node undo` takes it away.
export OMP_NUM_THREADS=1  # 2 processors, 1 ranks, half for the loader
export TOKENIZERS_PARALLELISM=false  # the loader's processes are the parallelism
export NCCL_SOCKET_IFNAME=eth0  # the way out; not a bridge of containers
export GLOO_SOCKET_IFNAME=eth0
export SEATRIAL_SCRATCH=/scratch/seatrial
export SEATRIAL_RUNS_DIR=/srv/seatrial/runs
SEATRIAL_END
}

# Python environment with Seatrial
step_python() {
venv /opt/seatrial /usr/bin/python3.11 0.1.0 'seatrial[train]==0.1.0'
}

run_step packages
run_step scratch
run_step durable
run_step limits
run_step sysctl
run_step environment
run_step python
tell end same ''
exit $bad
