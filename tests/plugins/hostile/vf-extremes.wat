;; Ranks three candidates: the highest score that there is, the lowest, 0.
(data (i32.const 2056) "\40\09\00\00" "\03\00\00\00")
(data (i32.const 2368) "\00\00\00\00\ff\ff\ff\7f" "\00\00\00\00\00\00\00\80" "\00\00\00\00\00\00\00\00")
(func (export "ostler:policy/select-vf-hook@0.1.0#select-vf") (type $select) (i32.const 2048))
