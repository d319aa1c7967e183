# What a machine is: needs nothing but a shell, and no rights.
say() { printf '%s=%s\n' "$1" "$2"; }
. /etc/os-release 2>/dev/null
say os "${ID:-unknown}"
say os_version "${VERSION_ID:-}"
say codename "${VERSION_CODENAME:-}"
say arch "$(uname -m)"
say hostname "$(uname -n)"
say machine_id "$(cat /etc/machine-id 2>/dev/null)"
say uid "$(id -u)"
say home "$HOME"
if [ "$(id -u)" = 0 ]; then say sudo root; elif sudo -n true 2>/dev/null; then say sudo yes; else say sudo no; fi
say now "$(date +%s)"
say cpus "$(getconf _NPROCESSORS_ONLN)"
say memory_kib "$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)"
say shm_kib "$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $2 }')"
say root_free_kib "$(df -Pk / | awk 'NR == 2 { print $4 }')"
say memlock "$(ulimit -l)"
say nofile "$(ulimit -n)"
for python in python3.13 python3.12 python3.11 python3; do
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) && say python "$(command -v "$python") $version"
done
if command -v nvidia-smi >/dev/null 2>&1; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader,nounits 2>/dev/null | while read -r line; do say gpu "$line"; done
fi
[ -e /proc/driver/nvidia/version ] && say driver_loaded yes
for vendor in /sys/bus/pci/devices/*/vendor; do
    [ -e "$vendor" ] || continue
    class=$(cat "${vendor%vendor}class" 2>/dev/null)
    case "$(cat "$vendor"):$class" in 0x10de:0x030*) say pci_gpu yes ;; esac
done
for device in /sys/class/infiniband/*; do
    [ -e "$device" ] || continue
    for port in "$device"/ports/*; do
        say rdma "${device##*/} ${port##*/} $(cat "$port/link_layer" 2>/dev/null) $(cut -d: -f2 "$port/state" 2>/dev/null | tr -d ' ')"
    done
done
if command -v ip >/dev/null 2>&1; then
    say route "$(ip -o route get 1.1.1.1 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p')"
    say address "$(ip -o route get 1.1.1.1 2>/dev/null | sed -n 's/.* src \([^ ]*\).*/\1/p')"
fi
[ -d /run/systemd/system ] && say systemd yes
command -v tailscale >/dev/null 2>&1 && say tailscale yes
command -v aws >/dev/null 2>&1 && say aws yes
[ -r /var/lib/seatrial/added ] && while read -r line; do say added "$line"; done </var/lib/seatrial/added
say end yes
