;; Denies with a code that belongs to the host.
(data (i32.const 2052) "\01")
(data (i32.const 2056) "\00\09\00\00" "\0b\00\00\00" "\10\09\00\00" "\02\00\00\00")
(data (i32.const 2304) "policy.trap")
(data (i32.const 2320) "hi")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit) (i32.const 2048))
