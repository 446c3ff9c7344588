;; Never finishes to start.
(func $start (loop $again (br $again)))
(start $start)
