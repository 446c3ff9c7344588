;; Reads, writes, and traps.
(import "ostler:policy/kv@0.1.0" "get" (func $get (param i32 i32 i32)))
(import "ostler:policy/kv@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32)))
(data (i32.const 2304) "count")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit)
  (call $get (i32.const 2304) (i32.const 5) (i32.const 2336))
  (call $set (i32.const 2304) (i32.const 5) (i32.const 2304) (i32.const 5) (i32.const 2352))
  unreachable)
