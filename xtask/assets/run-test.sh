# Runs one test program, the first argument; the others are passed on. Output is live, and kept in /out/log. A program
# that takes too long is ended; before that it is told what its processes wait for.
limit=1500
program=$1
shift
describe() {
    echo "== ${program##*/} takes longer than $limit s; its processes and what they wait for:"
    for process in /proc/[0-9]*; do
        [ -e "$process/exe" ] || continue
        echo "${process#/proc/} $(tr '\0' ' ' <"$process/cmdline" | cut -c1-160)"
        for thread in "$process"/task/*; do
            echo "    $(cat "$thread/comm"): $(cut -d' ' -f1-8 "$thread/syscall") $(head -n 4 "$thread/stack" | sed 's/\[<0>\] //; s/+.*//' | tr '\n' ' ')"
        done
    done 2>/dev/null
    dmesg | tail -n 20
    tail -n 40 /tmp/ost*/daemon.log /tmp/ost*/data/vms/*/vmm.log 2>/dev/null
    # The last one decides nothing: what was not there to be shown does not matter.
    true
}
end() {
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/exe")" != "$program" ] || kill -KILL "${process#/proc/}"
    done
}
(sleep $limit && describe && end) &
guard=$!
"$program" "$@" 2>&1 | tee /out/log
status=${PIPESTATUS[0]}
kill $guard 2>/dev/null
exit "$status"
