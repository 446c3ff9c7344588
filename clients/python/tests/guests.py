"""The Python client against a node with guests: started by tests/python_guests.rs. Environment as in control.py."""

import os
import pathlib
import sys
import unittest

import ostler
from google.protobuf import duration_pb2
from ostler.v1 import vm_pb2

State = vm_pb2.VirtualMachine.State
NAME = "tenants/acme/vms/web"
# The lab emulates its processor.
BOOT = 150


class Guests(unittest.TestCase):
    def setUp(self):
        self.node = ostler.connect(os.environ["ENDPOINT"], pathlib.Path(os.environ["CERTS"]) / "tenant-acme")
        self.addCleanup(self.node.close)
        boot = vm_pb2.BootSpec(kernel="linux-6.12/vmlinux", initrd="linux-6.12/initrd")
        spec = vm_pb2.VirtualMachineSpec(vcpus=1, memory_mib=256, boot=boot)
        vm = vm_pb2.VirtualMachine(name=NAME, spec=spec)
        self.node.vms.RegisterVirtualMachine(vm_pb2.RegisterVirtualMachineRequest(virtual_machine=vm))
        destroy = vm_pb2.DestroyVirtualMachineRequest(name=NAME, force=True)
        self.addCleanup(self.node.vms.DestroyVirtualMachine, destroy)

    def test_a_guest_is_started_typed_to_paused_and_stopped_under_watch(self):
        changes = ostler.watch(self.node)
        self.assertEqual(next(changes).virtual_machine.state, State.REGISTERED)
        start = vm_pb2.StartVirtualMachineRequest(name=NAME, request_id=ostler.new_request_id())
        self.assertEqual(self.node.vms.StartVirtualMachine(start).state, State.RUNNING)
        # The same again is the same start: of a VM that runs, another one would be refused.
        self.assertEqual(self.node.vms.StartVirtualMachine(start).state, State.RUNNING)
        with ostler.Console(self.node, NAME) as console, ostler.Console(self.node, NAME) as late:
            console.read_until("ostler-guest: ready", timeout=BOOT)
            console.write("echo sum-$((40+2))\n")
            console.read_until("sum-42", timeout=60)
            late.read_until("sum-42", timeout=60)
            self.node.vms.PauseVirtualMachine(vm_pb2.PauseVirtualMachineRequest(name=NAME))
            self.assertEqual(ostler.wait_for(self.node, NAME, "PAUSED").state, State.PAUSED)
            self.node.vms.ResumeVirtualMachine(vm_pb2.ResumeVirtualMachineRequest(name=NAME))
            with self.assertRaises(ostler.OstlerError) as raised:
                self.node.vms.DestroyVirtualMachine(vm_pb2.DestroyVirtualMachineRequest(name=NAME))
            self.assertEqual(raised.exception.reason, "WRONG_STATE")
            stop = vm_pb2.StopVirtualMachineRequest(name=NAME, grace=duration_pb2.Duration(seconds=60))
            self.assertEqual(self.node.vms.StopVirtualMachine(stop).state, State.STOPPED)
        seen = [State.REGISTERED]
        while seen[-1] != State.STOPPED:
            state = next(changes).virtual_machine.state
            seen += [state] if state != seen[-1] else []
        changes.close()
        expected = ["REGISTERED", "STARTING", "RUNNING", "PAUSED", "RUNNING", "STOPPING", "STOPPED"]
        self.assertEqual([State.Name(state) for state in seen], expected)

    def test_a_vm_that_fails_ends_a_wait_with_the_cause(self):
        destroy = vm_pb2.DestroyVirtualMachineRequest(name=NAME)
        self.node.vms.DestroyVirtualMachine(destroy)
        boot = vm_pb2.BootSpec(kernel="linux-6.12/vmlinux", initrd="linux-6.12/initrd", cmdline="panic=-1 ostler.exec=panic")
        spec = vm_pb2.VirtualMachineSpec(vcpus=1, memory_mib=256, boot=boot)
        vm = vm_pb2.VirtualMachine(name=NAME, spec=spec)
        self.node.vms.RegisterVirtualMachine(vm_pb2.RegisterVirtualMachineRequest(virtual_machine=vm))
        self.node.vms.StartVirtualMachine(vm_pb2.StartVirtualMachineRequest(name=NAME))
        with self.assertRaises(ostler.VmFailed) as raised:
            ostler.wait_for(self.node, NAME, "STOPPED", timeout=BOOT)
        self.assertIn("panic", str(raised.exception))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
