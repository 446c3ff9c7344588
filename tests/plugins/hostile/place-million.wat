;; Ranks, with one mark, and gives a million reasons, of 16 bytes each.
(data (i32.const 2056) "\00\09\00\00" "\01\00\00\00" "\00\00\02\00" "\40\42\0f\00")
(func (export "ostler:policy/place-hook@0.1.0#place-vm") (type $select)
  (drop (memory.grow (i32.const 245)))
  (i32.const 2048))
