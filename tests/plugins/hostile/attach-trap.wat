;; Traps.
(func (export "ostler:policy/attach-hook@0.1.0#attach-device") (type $attach) unreachable)
