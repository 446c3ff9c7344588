;; Asks for a VM without end.
(import "ostler:policy/inventory@0.1.0" "vm" (func $vm (param i32 i32 i32)))
(data (i32.const 2304) "web")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit)
  (loop $again
    (call $vm (i32.const 2304) (i32.const 3) (i32.const 2336))
    (br $again))
  unreachable)
