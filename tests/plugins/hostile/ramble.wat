;; Denies with a message of 2,000 bytes: small enough to be read, too long to be shown.
(data (i32.const 2052) "\01")
(data (i32.const 2056) "\00\09\00\00" "\04\00\00\00" "\00\00\01\00" "\d0\07\00\00")
(data (i32.const 2304) "long")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit)
  (memory.fill (i32.const 65536) (i32.const 97) (i32.const 2000))
  (i32.const 2048))
