;; Never ends, and spends its time in bulk operations, which are cheap to count and slow to run.
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit)
  (drop (memory.grow (i32.const 64)))
  (loop $again
    (memory.fill (i32.const 65536) (i32.const 7) (i32.const 4194304))
    (br $again))
  unreachable)
