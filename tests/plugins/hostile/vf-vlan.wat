;; Ranks three candidates and chooses VLAN 4095, which is reserved.
(data (i32.const 2056) "\00\09\00\00" "\03\00\00\00")
(data (i32.const 2072) "\80\09\00\00" "\01\00\00\00")
(data (i32.const 2432) "\01\00\00\00" "\ff\0f")
(func (export "ostler:policy/select-vf-hook@0.1.0#select-vf") (type $select) (i32.const 2048))
