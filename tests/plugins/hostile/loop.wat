;; Never ends.
(func (export "ostler:policy/admit-hook@0.1.0#admit-vm") (type $admit) (loop $again (br $again)) unreachable)
