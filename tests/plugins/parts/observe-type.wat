;; tenant, missed, events -> address of the answer
(type $observe (func (param i32 i32 i64 i32 i32) (result i32)))
