;; Wants 24 MiB from the start.
(memory (export "memory") 384)
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))
