;; Wants to see what a tenant has before there is one.
(import "ostler:policy/inventory@0.1.0" "usage" (func $usage (param i32)))
(func (export "ostler:policy/lifecycle@0.1.0#describe") (result i32)
  (call $usage (i32.const 2304))
  unreachable)
(func (export "ostler:policy/lifecycle@0.1.0#validate-settings") (result i32) (i32.const 1104))
