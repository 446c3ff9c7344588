;; Logs without end.
(import "ostler:policy/log@0.1.0" "emit" (func $emit (param i32 i32 i32)))
(data (i32.const 2304) "all is well")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit)
  (loop $again
    (call $emit (i32.const 2) (i32.const 2304) (i32.const 11))
    (br $again))
  unreachable)
