;; Traps.
(func (export "ostler:policy/observe-hook@0.1.0#on-events") (type $observe) unreachable)
