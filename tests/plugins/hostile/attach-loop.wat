;; Never answers.
(func (export "ostler:policy/attach-hook@0.1.0#attach-device") (type $attach) (loop $again (br $again)) unreachable)
