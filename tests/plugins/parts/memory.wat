;; Two pages; static data below 4096, the rest is handed out upwards and never freed.
(memory (export "memory") 2)
(global $next (mut i32) (i32.const 4096))
(func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
  (local $at i32)
  (local.set $at (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
  (global.set $next (i32.add (local.get $at) (local.get $size)))
  (local.get $at))
