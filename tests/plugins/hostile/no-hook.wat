;; Exports no hook at all.
