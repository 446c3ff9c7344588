;; Traps.
(func (export "ostler:policy/select-vf-hook@0.1.0#select-vf") (type $select) unreachable)
