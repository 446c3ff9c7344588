;; Traps.
(func (export "ostler:policy/select-nvme-hook@0.1.0#select-nvme") (type $select) unreachable)
