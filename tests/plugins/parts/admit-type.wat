;; tenant, vm.name, vcpus, memory-mib, disks, nics, in-use.{vms, vcpus, memory-mib} -> address of the answer
(type $admit (func (param i32 i32 i32 i32 i32 i64 i32 i32 i32 i32 i64) (result i32)))
