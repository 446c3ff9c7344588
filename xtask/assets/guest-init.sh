#!/bin/sh
# PID 1 of the test guests: loads drivers, reports what works in lines that begin with "ostler-guest:", then gives a shell.
# Words of the kernel command line that it obeys: ip=, ostler.nic (tell of the first NIC, once its link is up),
# ostler.ping=<count> (of the gateway), ostler.nvme (tell of the first NVMe namespace; overwrites its first MiB),
# ostler.count, ostler.run=<program of the initial RAM disk>, ostler.exec=poweroff|reboot|panic.
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
# Virtio devices 3, 5 and 19 (VIRTIO 1.3 §5): a console, a balloon, sockets.
for id in /sys/bus/virtio/devices/*/device; do
    case "$(cat "$id")" in
    0x0003) list=/modules.console ;;
    0x0005) list=/modules.balloon ;;
    0x0013) list=/modules.vsock ;;
    *) continue ;;
    esac
    while read -r module; do insmod "$module"; done <"$list"
    if [ $list = /modules.console ]; then
        # If that was a module, the kernel had no console to give PID 1, and nothing that was said was heard.
        exec </dev/console >/dev/console 2>&1
        echo "ostler-guest: kernel $release"
    fi
done

while read -r key value rest; do
    [ "$key" = MemTotal: ] && echo "ostler-guest: cpus $(nproc) memory $value kB" && break
done </proc/meminfo

# The name of the driver of a device in sysfs.
driver() {
    (cd -P "$1/driver" 2>/dev/null && echo "${PWD##*/}")
}
# How many interrupts all vectors of a device whose name begins so have had.
interrupts() {
    sum=0
    while read -r line; do
        case $line in *"$1"*) ;; *) continue ;; esac
        for field in ${line#*:}; do
            case $field in *[!0-9]*) break ;; *) sum=$((sum + field)) ;; esac
        done
    done </proc/interrupts
    echo $sum
}
nic_lines() {
    nic=/sys/class/net/eth0
    waited=0
    # Carrier cannot be read while the interface is down.
    until [ "$(cat $nic/carrier 2>/dev/null)" = 1 ] || [ $waited = 300 ]; do
        usleep 100000
        waited=$((waited + 1))
    done
    echo "ostler-guest: nic $(driver $nic/device) $(cat $nic/address) carrier $(cat $nic/carrier)"
}
nvme_lines() {
    controller=/sys/class/nvme/nvme0
    [ -b /dev/nvme0n1 ] || return
    read -r model <$controller/model
    read -r serial <$controller/serial
    echo "ostler-guest: nvme $(driver $controller/device) serial $serial model $model"
    echo "ostler-guest: nvme sectors $(cat /sys/block/nvme0n1/size)"
    dd if=/dev/urandom of=/tmp/written bs=64k count=16 2>/dev/null
    dd if=/tmp/written of=/dev/nvme0n1 bs=64k conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    dd if=/dev/nvme0n1 of=/tmp/read bs=64k count=16 2>/dev/null
    written=$(md5sum </tmp/written)
    [ "$written" = "$(md5sum </tmp/read)" ] && echo "ostler-guest: nvme reads what was written"
    echo "ostler-guest: nvme interrupts $(interrupts nvme0q)"
}

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
case " $words " in *" ostler.nic "*) nic_lines ;; esac
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
    ostler.ping=*)
        before=$(interrupts eth0)
        ping -q -A -c "${word#*=}" "$gateway" | grep transmitted | sed 's/^/ostler-guest: ping /'
        echo "ostler-guest: nic interrupts $before then $(interrupts eth0)"
        ;;
    ostler.nvme) nvme_lines ;;
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
    ostler.run=*) "/bin/${word#*=}" ;;
    ostler.exec=poweroff) exec poweroff -f ;;
    ostler.exec=reboot) exec reboot -f ;;
    ostler.exec=panic) echo c >/proc/sysrq-trigger ;;
    esac
done
# A press of the button is lost before the daemon, in the background by now, has opened its events.
tries=0
until ls -l "/proc/$(busybox pidof acpid)/fd" 2>/dev/null | grep -q /dev/input || [ $tries -eq 50 ]; do
    tries=$((tries + 1))
    usleep 20000
done
echo "ostler-guest: ready"
export PS1='guest# '
while :; do
    setsid cttyhack sh
done
