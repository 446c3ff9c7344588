(data (i32.const 2052) "\02")
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit) (i32.const 2048))
