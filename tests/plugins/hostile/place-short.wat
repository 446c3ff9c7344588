;; Ranks, with one mark for however many candidates.
(data (i32.const 2056) "\00\09\00\00" "\01\00\00\00")
(func (export "ostler:policy/place-hook@0.1.0#place-vm") (type $select) (i32.const 2048))
