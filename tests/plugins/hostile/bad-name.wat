;; Says that its name is "../x".
(data (i32.const 1024) "../x1")
(data (i32.const 1072) "\00\04\00\00" "\04\00\00\00" "\04\04\00\00" "\01\00\00\00" "\04\04\00\00" "\01\00\00\00")
(func (export "ostler:policy/lifecycle@0.1.0#describe") (result i32) (i32.const 1072))
(func (export "ostler:policy/lifecycle@0.1.0#validate-settings") (result i32) (i32.const 1104))
