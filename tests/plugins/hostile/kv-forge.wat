;; Writes, and gives an answer that breaks the contract: a cap of nothing.
(import "ostler:policy/kv@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32)))
(data (i32.const 2304) "count")
;; ok, allow, one patch at 2416
(data (i32.const 2368) "\00\00\00\00" "\00\00\00\00" "\70\09\00\00" "\01\00\00\00")
;; cap-vcpus 0
(data (i32.const 2416) "\00\00\00\00\00\00\00\00" "\00\00\00\00\00\00\00\00")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit)
  (call $set (i32.const 2304) (i32.const 5) (i32.const 2304) (i32.const 5) (i32.const 2352))
  (i32.const 2368))
