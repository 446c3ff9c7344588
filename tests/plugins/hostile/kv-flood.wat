;; Asks what it remembers without end.
(import "ostler:policy/kv@0.1.0" "get" (func $get (param i32 i32 i32)))
(data (i32.const 2304) "count")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit)
  (loop $again
    (call $get (i32.const 2304) (i32.const 5) (i32.const 2336))
    (br $again))
  unreachable)
