#!/bin/sh
# Takes away what Seatrial added to this machine, by the record that it keeps, and nothing else.
set -u
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
record=/var/lib/seatrial/added
tell() { printf '@@seatrial\t%s\t%s\t%s\n' "$1" "$2" "$3"; }
sum_of() { sha256sum "$1" | cut -d' ' -f1; }

[ -r "$record" ] || { tell record same "there is no record: nothing was added here"; exit 0; }
lines=$(mktemp) && tac "$record" >"$lines" || exit 1
left=$(mktemp)
stays() { printf '%s\n' "$line" >>"$left"; tell "$1" stays "$2"; }
while read -r line; do
    kind=${line%% *} rest=${line#* }
    case $kind in
        service)
            if [ -d /run/systemd/system ]; then systemctl disable -q --now "$rest" 2>/dev/null; fi
            tell "$rest" removed "service" ;;
        tree) rm -rf "$rest" && tell "$rest" removed "directory with all in it" ;;
        file)
            path=${rest#* }
            if [ ! -e "$path" ]; then tell "$path" gone "somebody removed it"
            elif [ "$(sum_of "$path")" = "${rest%% *}" ]; then rm -f "$path" && tell "$path" removed "file"
            else stays "$path" "somebody changed it"; fi ;;
    esac
done <"$lines"
while read -r line; do
    case $line in
        "directory "*)
            path=${line#* }
            if [ ! -d "$path" ]; then tell "$path" gone "somebody removed it"
            elif rmdir "$path" 2>/dev/null; then tell "$path" removed "empty directory"
            else stays "$path" "it is not empty"; fi ;;
    esac
done <"$lines"
ours=$(sed -n 's/^package //p' "$record")
if [ -n "$ours" ]; then
    there=
    for package in $ours; do case "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" in ii*) there="$there $package" ;; esac; done
    # What something that came later needs stays: apt would remove that, too.
    for package in $there; do
        others=$(apt-get -s purge $there 2>/dev/null | sed -n 's/^\(Purg\|Remv\) \([^ ]*\).*/\2/p' | sort -u)
        more=
        for other in $others; do case " $there " in *" $other "*) ;; *) more="$more $other" ;; esac; done
        [ -n "$more" ] || break
        line="package $package"; stays "$package" "needed by$more"
        there=$(printf ' %s ' $there | sed "s/ $package / /")
    done
    if [ -n "$(printf %s "$there" | tr -d ' ')" ]; then
        if apt-get purge -y -qq -o DPkg::Lock::Timeout=300 $there >/dev/null 2>&1; then tell packages removed "$(printf '%s' "$there" | wc -w) packages:$there"
        else for package in $there; do line="package $package"; printf '%s\n' "$line" >>"$left"; done; tell packages failed "apt-get purge$there"; fi
    fi
fi
if [ -s "$left" ]; then tac "$left" >"$record"; else rm -f "$record"; rmdir "${record%/*}" 2>/dev/null; fi
rm -f "$lines" "$left"
tell end same ""
