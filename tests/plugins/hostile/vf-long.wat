;; Ranks, with four marks: where three VFs are offered, one for a VF that is not.
(data (i32.const 2056) "\00\09\00\00" "\04\00\00\00")
(func (export "ostler:policy/select-vf-hook@0.1.0#select-vf") (type $select) (i32.const 2048))
