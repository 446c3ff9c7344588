;; Denies with a message that would clear the reader's terminal.
(data (i32.const 2052) "\01")
(data (i32.const 2056) "\00\09\00\00" "\04\00\00\00" "\04\09\00\00" "\07\00\00\00")
(data (i32.const 2304) "tidy\1b[2Jall")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit) (i32.const 2048))
