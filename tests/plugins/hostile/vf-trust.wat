;; Ranks three candidates and grants trust: a right that only the operator's plugins have.
(data (i32.const 2056) "\00\09\00\00" "\03\00\00\00")
(data (i32.const 2072) "\80\09\00\00" "\01\00\00\00")
(data (i32.const 2432) "\03\00\00\00" "\01")
(func (export "ostler:policy/select-vf-hook@0.1.0#select-vf") (type $select) (i32.const 2048))
