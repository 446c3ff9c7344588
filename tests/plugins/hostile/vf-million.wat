;; Ranks three candidates, and gives a million reasons, of 16 bytes each.
(data (i32.const 2056) "\00\09\00\00" "\03\00\00\00" "\00\00\02\00" "\40\42\0f\00")
(func (export "ostler:policy/select-vf-hook@0.1.0#select-vf") (type $select)
  (drop (memory.grow (i32.const 245)))
  (i32.const 2048))
