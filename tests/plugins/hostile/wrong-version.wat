;; Has the hook `admit` of a later contract.
(func (export "ostler:policy/admit-hook@0.2.0#admit-vm") (param i32 i32) (result i32) (i32.const 0))
