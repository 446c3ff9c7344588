# Runs every test program of /lab/tests, one after the other. Arguments go to each.
# Output is live; what each said and its exit status are kept in /out. A program that takes too long is ended; before
# that it is told what its processes wait for.
limit=1500
describe() {
    echo "== $1 takes longer than $limit s; its processes and what they wait for:"
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
        [ "$(readlink "$process/exe")" != "$1" ] || kill -KILL "${process#/proc/}"
    done
}
result=0
for program in /lab/tests/*; do
    name=${program##*/}
    echo "== test program $name (in the lab)"
    (sleep $limit && describe "$name" && end "$program") &
    guard=$!
    "$program" "$@" 2>&1 | tee "/out/$name.log"
    status=${PIPESTATUS[0]}
    kill $guard 2>/dev/null
    echo "$status" >"/out/$name.status"
    [ "$status" = 0 ] || result=1
done
exit $result
