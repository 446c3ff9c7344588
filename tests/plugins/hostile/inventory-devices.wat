;; Looks at all VMs when a device comes or goes, and has no objection.
(import "ostler:policy/inventory@0.1.0" "vms" (func $vms (param i32 i32 i32)))
;; ok, abstain
(data (i32.const 2052) "\02")
(func (export "ostler:policy/attach-hook@0.1.0#attach-device") (type $attach)
  (call $vms (i32.const 0) (i32.const 128) (i32.const 2336))
  (i32.const 2048))
(func (export "ostler:policy/detach-hook@0.1.0#detach-device") (type $detach)
  (call $vms (i32.const 0) (i32.const 128) (i32.const 2336))
  (i32.const 2048))
