;; Wants to see labels before there is a VM.
(import "ostler:policy/subject@0.1.0" "labels" (func $labels (param i32)))
(func (export "ostler:policy/lifecycle@0.1.0#describe") (result i32)
  (call $labels (i32.const 2304))
  unreachable)
(func (export "ostler:policy/lifecycle@0.1.0#validate-settings") (result i32) (i32.const 1104))
