;; Has no opinion.
(data (i32.const 2052) "\02")
(func (export "ostler:policy/attach-hook@0.1.0#attach-device") (type $attach) (i32.const 2048))
