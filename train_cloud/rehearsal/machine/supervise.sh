#!/bin/bash
# supervise.sh FOLDER IMAGE MAC [SYSTEMD-NSPAWN OPTION…]
# The cloud around one machine: PID 1 of process, mount and network namespaces of its own. When it ends, the kernel ends
# and unmounts all that is in them, so nothing outlives the rehearsal, even one that is killed. Standard input: a line
# once the metadata service and AWS listen; its end is the machine's. CGROUPS: control groups to hold all of it.
set -Eeuo pipefail
folder=$1 image=$2 mac=$3
shift 3
gateway=10.0.0.1 machine=10.0.0.10

for group in $CGROUPS; do echo 0 >"$group/cgroup.procs"; done
mount -t tmpfs -o mode=755 tmpfs /run
ip netns add machine
ip link set lo up
ip link add cloud type veth peer name eth0 address "$mac" netns machine
for address in $gateway/24 169.254.169.254/32; do ip address add "$address" dev cloud; done
ip link set cloud up

# DHCP gives the machine one address, and a way to everything that leads here. Every name of AWS is this side of the
# wire, and there is no other name: the machine has no internet.
dnsmasq --keep-in-foreground --conf-file=/dev/null --no-hosts --no-resolv --user=root --pid-file \
	--interface=cloud --bind-interfaces --except-interface=lo --no-ping --dhcp-authoritative --dhcp-ignore-clid \
	--dhcp-leasefile="$folder/leases" --dhcp-range=$machine,$machine,1h --dhcp-option=option:router,$gateway \
	--dhcp-option=option:dns-server,$gateway --address=/amazonaws.com/$gateway --log-facility="$folder/dnsmasq.log" \
	</dev/null >/dev/null 2>"$folder/dnsmasq.err" &

# A disk in memory, which the rehearsal reads by a descriptor of its own, also when the machine is gone.
mount -t tmpfs -o mode=755 tmpfs "$folder/machine"
mkdir "$folder"/machine/{disk,work,root}
echo ready
read -r _
mount -t overlay -o "lowerdir=$image,upperdir=$folder/machine/disk,workdir=$folder/machine/work" overlay "$folder/machine/root"
exec 3<&0
systemd-nspawn --quiet --directory="$folder/machine/root" --machine="${folder##*/}" --network-namespace-path=/run/netns/machine \
	--capability=CAP_NET_ADMIN --register=no --keep-unit --link-journal=no --resolv-conf=off --timezone=off \
	--console=pipe --notify-ready=no "$@" /usr/local/sbin/rehearsal-init \
	</dev/null >"$folder/console.log" 2>&1 3<&- &
nspawn=$!
cat <&3 >/dev/null &
wait -n "$nspawn" $!
