#!/bin/sh
# PID 1 of the machine for a moment: makes the container look like an EC2 instance, then becomes systemd.
# In a container cloud-init does not read DMI, but it does read /sys/hypervisor/uuid: only where that begins with "ec2"
# does it believe that the cloud is AWS, and only then does it ask for metadata with tokens (IMDSv2).
set -eu
mount --make-rprivate /
mkdir -p /run/sys /run/kernel
mount -t tmpfs -o mode=755,nosuid,nodev,noexec tmpfs /run/sys
# A fresh sysfs shows the network devices of this machine; the one that nspawn mounts shows this computer's.
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /run/kernel
mkdir -p /run/sys/bus/pci/devices /run/sys/fs/cgroup /run/sys/hypervisor
for part in block class dev devices kernel module power; do
	mkdir "/run/sys/$part"
	mount --bind "/run/kernel/$part" "/run/sys/$part"
done
# Which PCI devices there are is the rehearsal's to say: none, or those that it invents.
for bus in /run/kernel/bus/*; do
	[ "${bus##*/}" != pci ] || continue
	mkdir "/run/sys/bus/${bus##*/}"
	mount --bind "$bus" "/run/sys/bus/${bus##*/}"
done
cp -R /etc/rehearsal/pci/. /run/sys/bus/pci/devices/
cp /etc/rehearsal/uuid /run/sys/hypervisor/uuid
echo xen >/run/sys/hypervisor/type
mount --rbind /sys/fs/cgroup /run/sys/fs/cgroup
umount /run/kernel
mount --move /run/sys /sys
mount -o remount,bind,ro /sys
rmdir /run/kernel /run/sys
mount --make-rshared /
exec /lib/systemd/systemd
