"""A VM from registration to destruction: python3 first_vm.py HOST:PORT IDENTITY [KERNEL [INITRD]]

IDENTITY is the prefix of a tenant's certificate: /var/lib/ostler/certs/tenant-acme
"""

import sys
import threading

import ostler
from ostler.v1 import vm_pb2

endpoint, identity = sys.argv[1:3]
kernel, initrd = (sys.argv[3:] + ["linux-6.12/vmlinux", "linux-6.12/initrd"])[:2]
name = f"tenants/{identity.rsplit('tenant-', 1)[-1]}/vms/hello"
boot = vm_pb2.BootSpec(kernel=kernel, initrd=initrd)
vm = vm_pb2.VirtualMachine(name=name, spec=vm_pb2.VirtualMachineSpec(vcpus=1, memory_mib=256, boot=boot))


def tell_changes(changes):
    for change in changes:
        print("watch:", change.virtual_machine.name, vm_pb2.VirtualMachine.State.Name(change.virtual_machine.state))
        if change.virtual_machine.state == vm_pb2.VirtualMachine.DESTROYED:
            return


with ostler.connect(endpoint, identity) as node:
    node.vms.RegisterVirtualMachine(vm_pb2.RegisterVirtualMachineRequest(virtual_machine=vm))
    watcher = threading.Thread(target=tell_changes, args=[ostler.watch(node)])
    watcher.start()
    node.vms.StartVirtualMachine(vm_pb2.StartVirtualMachineRequest(name=name))
    with ostler.Console(node, name) as console:
        print(console.read_until("ostler-guest: ready", timeout=150))
        console.write("uname -a\n")
        print(console.read_until("GNU/Linux", timeout=60))
    node.vms.StopVirtualMachine(vm_pb2.StopVirtualMachineRequest(name=name))
    node.vms.DestroyVirtualMachine(vm_pb2.DestroyVirtualMachineRequest(name=name))
    watcher.join()
