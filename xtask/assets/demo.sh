# The demo: one VM, from a client's certificate to the guest's shell. Runs as root, here or in the lab.
# Needs OSTLER_BIN (the program) and OSTLER_ASSETS (a directory with images/ and plugins/). A virtual function is given to a
# VM where the host has one; with OSTLER_DEMO_CARD=1, in the lab, it is made first.
set -eu
home=$(mktemp -d /tmp/ostler-demo.XXXXXX)
daemon=
finish() {
    status=$?
    trap - EXIT
    if [ "$status" != 0 ] && [ -s "$home/daemon.log" ]; then
        echo "the demo failed; the daemon's last lines:" >&2
        tail -n 30 "$home/daemon.log" >&2
    fi
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf "$home"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

title() { printf '\n── %s\n' "$1"; }
ostler() { "$OSTLER_BIN" "$@"; }
# Prints a command as a person would type it, then runs it.
run() {
    printf '\n$'
    for word in "$@"; do
        case $word in *[\ \'\;]*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
    done | sed "s|$OSTLER_ASSETS|assets|g; s|$home|demo|g"
    echo
    "$@"
}

title 'Certificates: a CA, the daemon, an operator, and the tenant acme'
run ostler certs init --dir "$home/data/certs" --tenant acme
mkdir -p "$home/data/volumes/acme"
cp "$OSTLER_ASSETS/images/hello.img" "$home/data/volumes/acme/"

title 'The daemon'
listen=127.0.0.1:7811
printf '\n$ ostler serve --data-dir demo/data --images-dir assets/images --listen %s &\n' "$listen"
"$OSTLER_BIN" serve --data-dir "$home/data" --run-dir "$home/run" --images-dir "$OSTLER_ASSETS/images" \
    --listen "$listen" >"$home/daemon.log" 2>&1 &
daemon=$!
export OSTLER_ENDPOINT="https://$listen" OSTLER_IDENTITY="$home/data/certs/operator-admin"
tries=0
until ostler plugin list >"$home/first-list" 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" = 100 ] || ! kill -0 "$daemon" 2>/dev/null; then
        echo "the daemon does not answer:" >&2
        cat "$home/first-list" >&2
        exit 1
    fi
    sleep 0.2
done

title 'Policy: the operator loads a WebAssembly plugin with its limits'
run ostler plugin load "$OSTLER_ASSETS/plugins/admission.wasm" --operator --setting max-vcpus=4 --setting max-memory-mib=2048
run ostler plugin list

title 'A VM of the tenant acme'
export OSTLER_IDENTITY="$home/data/certs/tenant-acme"
run ostler vm register hello --vcpus 2 --memory 256M --kernel linux-6.12/vmlinux --initrd linux-6.12/initrd \
    --cmdline quiet --disk id=root,volume=hello.img,ro --nic id=eth0
run ostler vm start hello
run ostler vm console hello --until 'ostler-guest: ready' --timeout 120s --linger 120s </dev/null
echo

title "Its shell answers"
echo 'uname -sr; cat /mnt/hello.txt; echo "guest: "done' >"$home/typed"
run ostler vm console hello --until 'guest: done' --timeout 60s --linger 60s <"$home/typed"
echo
run ostler vm list

title 'A VM that the policy denies'
if run ostler vm register greedy --vcpus 16 --memory 256M --kernel linux-6.12/vmlinux; then
    echo 'the policy let a VM pass that it must deny' >&2
    exit 1
fi

title 'A virtual function of a network card, which policy chooses'
if [ -n "${OSTLER_DEMO_CARD-}" ]; then
    modprobe -a igb vfio_pci
    for card in /sys/class/net/*/device/sriov_totalvfs; do
        [ -e "$card" ] || continue
        card=${card%/sriov_totalvfs}
        ip link set "$(ls "$card/net")" up
        echo 0 >"$card/sriov_drivers_autoprobe"
        echo 2 >"$card/sriov_numvfs"
        break
    done
fi
has_function=
for function in /sys/class/net/*/device/virtfn0; do [ ! -e "$function" ] || has_function=1; done
if [ -z "$has_function" ] || [ ! -e /sys/bus/pci/drivers/vfio-pci ]; then
    echo 'left out: this host has no virtual function, or no driver vfio-pci (modprobe vfio-pci)'
else
    export OSTLER_IDENTITY="$home/data/certs/operator-admin"
    run ostler plugin load "$OSTLER_ASSETS/plugins/sriov-net.wasm" --operator
    run ostler host devices
    export OSTLER_IDENTITY="$home/data/certs/tenant-acme"
    # In the lab the guest asks what is behind the card.
    words=quiet
    expected='ostler-guest: ready'
    if [ -n "${OSTLER_DEMO_CARD-}" ]; then
        words='quiet ip=10.0.2.20::10.0.2.2:255.255.255.0::eth0:off ostler.nic ostler.ping=5'
        expected='ostler-guest: ping 5 packets transmitted, 5 packets received'
    fi
    run ostler vm register direct --memory 512M --kernel linux-6.12-full/vmlinux --initrd linux-6.12-full/initrd \
        --cmdline "$words" --nic sriov
    run ostler vm start direct
    run ostler vm console direct --until "$expected" --timeout 120s --linger 120s </dev/null
    echo
    decision=$(ostler decision list --hook select-vf --limit 1 -o json | sed -n 's/.*"name": "\(.*\/decisions\/[0-9]*\)".*/\1/p')
    run ostler decision explain "$decision"
    run ostler vm destroy direct --force
fi

title 'The end: the power button, and nothing is left'
run ostler vm stop hello
run ostler vm destroy hello
run ostler vm list
printf '\nThe demo is over: everything above was real.\n'
