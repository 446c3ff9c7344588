# Runs every test program of /lab/tests, one after the other. Arguments go to each.
# Output is live; what each said and its exit status are kept in /out.
result=0
for program in /lab/tests/*; do
    name=${program##*/}
    echo "== test program $name (in the lab)"
    "$program" "$@" 2>&1 | tee "/out/$name.log"
    status=${PIPESTATUS[0]}
    echo "$status" >"/out/$name.status"
    [ "$status" = 0 ] || result=1
done
exit $result
