#!/bin/sh
# PID 1 of the test guests: loads drivers, reports what works in lines that begin with "ostler-guest:", then gives a shell.
# Words of the kernel command line that it obeys: ip=, ostler.count, ostler.exec=poweroff|reboot|panic.
export PATH=/bin HOME=/ TERM=linux
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
read -r release </proc/sys/kernel/osrelease
echo "ostler-guest: kernel $release"
read -r words </proc/cmdline

# insmod does not read the kernel command line; the machine may announce its devices there.
mmio=
for word in $words; do
    case $word in virtio_mmio.device=*) mmio="$mmio ${word#virtio_mmio.}" ;; esac
done
while read -r module; do
    case $module in
    */virtio_mmio.ko) insmod "$module" $mmio ;;
    *) insmod "$module" ;;
    esac
done </modules

while read -r key value rest; do
    [ "$key" = MemTotal: ] && echo "ostler-guest: cpus $(nproc) memory $value kB" && break
done </proc/meminfo

gateway=
for word in $words; do
    case $word in ip=*)
        # ip=<address>:<server>:<gateway>:<mask>:<name>:<interface>:…
        IFS=: read -r address server gateway mask name interface rest <<END
${word#ip=}
END
        ip link set lo up
        ip addr add "$address/${mask:-255.255.255.0}" dev "${interface:-eth0}"
        ip link set "${interface:-eth0}" up
        [ -n "$gateway" ] && ip route add default via "$gateway"
        ;;
    esac
done

if [ -b /dev/vda ]; then
    if mount -t ext4 -o ro /dev/vda /mnt 2>/dev/null || mount -t squashfs -o ro /dev/vda /mnt 2>/dev/null; then
        hello=
        [ -f /mnt/hello.txt ] && read -r hello </mnt/hello.txt
        echo "ostler-guest: disk $hello"
    else
        echo "ostler-guest: disk unreadable"
    fi
fi
if [ -n "$gateway" ]; then
    if ping -c 1 -W 2 "$gateway" >/dev/null 2>&1; then
        echo "ostler-guest: ping $gateway ok"
    else
        echo "ostler-guest: ping $gateway failed"
    fi
fi
acpid

for word in $words; do
    case $word in
    ostler.count)
        (
            count=0
            while :; do
                echo "ostler-guest: count $count"
                count=$((count + 1))
                usleep 200000
            done
        ) &
        ;;
    ostler.exec=poweroff) exec poweroff -f ;;
    ostler.exec=reboot) exec reboot -f ;;
    ostler.exec=panic) echo c >/proc/sysrq-trigger ;;
    esac
done
echo "ostler-guest: ready"
export PS1='guest# '
while :; do
    setsid cttyhack sh
done
