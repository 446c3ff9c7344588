;; Ranks, with 1,025 marks: more than there are ever candidates.
(data (i32.const 2056) "\00\00\02\00" "\01\04\00\00")
(func (export "ostler:policy/place-hook@0.1.0#place-vm") (type $select)
  (drop (memory.grow (i32.const 1)))
  (i32.const 2048))
