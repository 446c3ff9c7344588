;; Allows, and caps memory at nothing.
(data (i32.const 2056) "\00\09\00\00" "\01\00\00\00")
(data (i32.const 2304) "\01")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit) (i32.const 2048))
