;; Denies with a code that belongs to the host.
(data (i32.const 2052) "\01")
(data (i32.const 2056) "\40\09\00\00" "\0e\00\00\00" "\40\09\00\00" "\06\00\00\00")
(data (i32.const 2368) "policy.allowed")
(func (export "ostler:policy/place-hook@0.1.0#place-vm") (type $select) (i32.const 2048))
