;; Imports a clock, which its world does not grant.
(import "wasi:clocks/monotonic-clock@0.2.0" "now" (func $now (result i64)))
(data (i32.const 2052) "\02")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit) (drop (call $now)) (i32.const 2048))
