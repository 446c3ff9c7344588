;; Denies with a code that only the host may give.
(data (i32.const 2052) "\01")
(data (i32.const 2056) "\00\09\00\00" "\0b\00\00\00" "\00\09\00\00" "\0b\00\00\00")
(data (i32.const 2304) "policy.trap")
(func (export "ostler:policy/attach-hook@0.1.0#attach-device") (type $attach) (i32.const 2048))
