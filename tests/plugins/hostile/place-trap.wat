;; Traps.
(func (export "ostler:policy/place-hook@0.1.0#place-vm") (type $select) unreachable)
