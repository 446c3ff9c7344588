;; Rejects the first of three candidates for a reason that it does not give.
(data (i32.const 2056) "\40\09\00\00" "\03\00\00\00")
(data (i32.const 2368) "\01\00\00\00\05\00\00\00" "\00\00\00\00\00\00\00\00" "\00\00\00\00\00\00\00\00")
(func (export "ostler:policy/place-hook@0.1.0#place-vm") (type $select) (i32.const 2048))
