;; Denies with a message of 1 MiB.
(data (i32.const 2052) "\01")
(data (i32.const 2056) "\00\09\00\00" "\04\00\00\00" "\00\00\01\00" "\00\00\10\00")
(data (i32.const 2304) "loud")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit)
  (drop (memory.grow (i32.const 16)))
  (memory.fill (i32.const 65536) (i32.const 97) (i32.const 1048576))
  (i32.const 2048))
