;; address of the request -> address of the answer
(type $attach (func (param i32) (result i32)))
