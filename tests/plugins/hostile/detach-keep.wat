;; Lets no device go.
(data (i32.const 2052) "\01")
(data (i32.const 2056) "\00\09\00\00" "\0b\00\00\00" "\10\09\00\00" "\0e\00\00\00")
(data (i32.const 2304) "device.kept")
(data (i32.const 2320) "devices remain")
(func (export "ostler:policy/detach-hook@0.1.0#detach-device") (type $detach) (i32.const 2048))
