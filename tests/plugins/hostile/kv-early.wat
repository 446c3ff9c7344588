;; Wants to remember before there is a tenant.
(import "ostler:policy/kv@0.1.0" "moment" (func $moment (result i64)))
(func (export "ostler:policy/lifecycle@0.1.0#describe") (result i32)
  (drop (call $moment))
  unreachable)
(func (export "ostler:policy/lifecycle@0.1.0#validate-settings") (result i32) (i32.const 1104))
