;; Describes itself as "hostile" 0.1.0 and takes any settings. Uses addresses 1024 to 1151.
(data (i32.const 1024) "hostile")
(data (i32.const 1032) "0.1.0")
(data (i32.const 1040) "misbehaves on purpose")
;; name, version, summary: address and length each
(data (i32.const 1072) "\00\04\00\00" "\07\00\00\00" "\08\04\00\00" "\05\00\00\00" "\10\04\00\00" "\15\00\00\00")
(func (export "ostler:policy/lifecycle@0.1.0#describe") (result i32) (i32.const 1072))
;; 1104: twelve zero bytes are `ok`
(func (export "ostler:policy/lifecycle@0.1.0#validate-settings") (result i32) (i32.const 1104))
