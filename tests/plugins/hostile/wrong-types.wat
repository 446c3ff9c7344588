;; Has the hook `admit` with a function of another type.
(func (export "ostler:policy/admit-hook@0.1.9#admit-vm") (param i32 i32) (result i32) (i32.const 0))
