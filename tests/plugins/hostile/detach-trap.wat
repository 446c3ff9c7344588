;; Traps.
(func (export "ostler:policy/detach-hook@0.1.0#detach-device") (type $detach) unreachable)
