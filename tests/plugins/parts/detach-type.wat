;; tenant, vm.{name, vcpus, memory-mib, disks, nics}, running, device, force -> address of the answer
(type $detach (func (param i32 i32 i32 i32 i32 i64 i32 i32 i32 i32 i32 i32) (result i32)))
