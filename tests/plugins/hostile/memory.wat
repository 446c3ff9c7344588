;; Takes memory as long as it gets any.
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit)
  (loop $again
    (drop (memory.grow (i32.const 8)))
    (br $again))
  unreachable)
