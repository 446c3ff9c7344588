#!/bin/sh
# PID 1 of the lab host: makes it look like a hypervisor host, runs the command that it was given, reports the exit
# status on a port of its own, and powers off.
export PATH=/lab/bin:/usr/local/bin:/usr/bin:/usr/sbin HOME=/root TERM=linux LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -t ext4 -o ro /dev/vdb /lab
mount -t ext4 -o ro /dev/vdc /lab/assets/images
mount -t ext4 /dev/vdd /out
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
hostname lab
ip link set lo up
modprobe -a kvm_amd tun vhost_net vhost_vsock vfio_pci vfio_iommu_type1 loop
for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name"
    case $name in
    lab.status) report=/dev/${port##*/} ;;
    lab.output) output=/dev/${port##*/} ;;
    # Opened once, for both directions: what comes is an interrupt, and nothing else.
    lab.pulse) { cat <&7 >/dev/null & while cat /proc/uptime; do sleep 5; done >&7; } 7<>"/dev/${port##*/}" & ;;
    esac
done
cd /root || exit
if [ -e /lab/command ]; then
    sh /lab/command </dev/null >"$output" 2>&1
    status=$?
else
    status=0
    . /lab/environment
    export PS1='lab# ' LAB_COLUMNS LAB_LINES
    setsid -c sh -c 'stty cols ${LAB_COLUMNS:-80} rows ${LAB_LINES:-24}; exec bash --norc -i' <>/dev/hvc0 >&0 2>&0 || status=$?
fi
umount /out || mount -o remount,ro /out
echo "$status" >"$report"
poweroff -f
