;; Answers with an address outside its memory.
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit) (i32.const 0x7ffffff0))
