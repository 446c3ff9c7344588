;; Asks for all VMs in a page that is longer than one may be, with a number that none has, and says how many came: caps at
;; so many vCPUs.
(import "ostler:policy/inventory@0.1.0" "vms" (func $vms (param i32 i32 i32)))
;; ok, allow, one patch at 2416
(data (i32.const 2368) "\00\00\00\00" "\00\00\00\00" "\70\09\00\00" "\01\00\00\00")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit)
  (call $vms (i32.const -1) (i32.const -1) (i32.const 2336))
  (if (i32.load (i32.const 2340)) (then unreachable))
  (call $vms (i32.const 0) (i32.const -1) (i32.const 2336))
  ;; cap-vcpus
  (i32.store (i32.const 2424) (i32.load (i32.const 2340)))
  (i32.const 2368))
