"""The Python client against a node without guests: started by tests/python_client.rs, which has made the node.

Environment: ENDPOINT, CERTS (a directory with the identities tenant-acme, tenant-globex and operator-admin), KERNEL,
PLUGIN (a component).
"""

import os
import pathlib
import sys
import threading
import unittest

import grpc
import ostler
from ostler.v1 import decision_pb2, plugin_pb2, tenant_pb2, vm_pb2

State = vm_pb2.VirtualMachine.State


def node(identity="tenant-acme"):
    return ostler.connect(os.environ["ENDPOINT"], pathlib.Path(os.environ["CERTS"]) / identity)


def name(vm, tenant="acme"):
    return f"tenants/{tenant}/vms/{vm}"


def registration(vm, vcpus=1, **rest):
    spec = vm_pb2.VirtualMachineSpec(
        vcpus=vcpus, memory_mib=128, boot=vm_pb2.BootSpec(kernel=os.environ["KERNEL"])
    )
    described = vm_pb2.VirtualMachine(name=name(vm), spec=spec)
    return vm_pb2.RegisterVirtualMachineRequest(virtual_machine=described, **rest)


class Control(unittest.TestCase):
    def setUp(self):
        self.node = node()
        self.addCleanup(self.node.close)
        self.addCleanup(self.destroy_all)

    def destroy_all(self):
        with node() as acme:
            for vm in acme.vms.ListVirtualMachines(vm_pb2.ListVirtualMachinesRequest()).virtual_machines:
                acme.vms.DestroyVirtualMachine(vm_pb2.DestroyVirtualMachineRequest(name=vm.name, force=True))

    def fails(self, call, *arguments):
        with self.assertRaises(ostler.OstlerError) as raised:
            call(*arguments)
        return raised.exception

    def test_a_vm_is_registered_listed_and_destroyed(self):
        made = self.node.vms.RegisterVirtualMachine(registration("web"))
        self.assertEqual((made.name, made.state), (name("web"), State.REGISTERED))
        self.assertTrue(made.admission.allowed)
        listed = self.node.vms.ListVirtualMachines(vm_pb2.ListVirtualMachinesRequest(filter='name : "web"'))
        self.assertEqual([vm.uid for vm in listed.virtual_machines], [made.uid])
        self.node.vms.DestroyVirtualMachine(vm_pb2.DestroyVirtualMachineRequest(name=name("web")))
        get = vm_pb2.GetVirtualMachineRequest(name=name("web"))
        self.assertEqual(self.fails(self.node.vms.GetVirtualMachine, get).reason, "VM_NOT_FOUND")

    def test_an_error_says_what_is_wrong_and_what_to_do(self):
        error = self.fails(self.node.vms.RegisterVirtualMachine, registration("web", vcpus=0))
        self.assertEqual(error.code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual((error.reason, error.metadata["field"]), ("BAD_FIELD", "spec.vcpus"))
        self.assertEqual(error.advice, "correct the field")
        self.assertIn("spec.vcpus", str(error))
        globex = vm_pb2.ListVirtualMachinesRequest(parent="tenants/globex")
        self.assertEqual(self.fails(self.node.vms.ListVirtualMachines, globex).reason, "NOT_ALLOWED")

    def test_a_denial_carries_what_policy_said(self):
        error = self.fails(self.node.vms.RegisterVirtualMachine, registration("web", vcpus=3))
        self.assertEqual((error.code, error.reason), (grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED"))
        self.assertEqual((error.metadata["plugin"], error.metadata["code"]), ("admission", "limit.vcpus"))
        decisions = self.node.decisions.ListDecisions(
            decision_pb2.ListDecisionsRequest(outcome=decision_pb2.ListDecisionsRequest.DENIED)
        )
        self.assertEqual(decisions.decisions[0].subject, "vms/web")

    def test_a_request_sent_twice_is_done_once(self):
        request = registration("web", request_id=ostler.new_request_id())
        first = self.node.vms.RegisterVirtualMachine(request)
        self.assertEqual(self.node.vms.RegisterVirtualMachine(request), first)
        self.assertEqual(self.fails(self.node.vms.RegisterVirtualMachine, registration("web")).reason, "VM_EXISTS")
        other = registration("db", request_id=request.request_id)
        self.assertEqual(self.fails(self.node.vms.RegisterVirtualMachine, other).reason, "REQUEST_ID_REUSED")

    def test_what_is_validated_only_is_not_there(self):
        self.node.vms.RegisterVirtualMachine(registration("web", validate_only=True))
        listed = self.node.vms.ListVirtualMachines(vm_pb2.ListVirtualMachinesRequest())
        self.assertEqual(len(listed.virtual_machines), 0)

    def test_a_watch_tells_each_change_in_order_and_goes_on_from_a_token(self):
        self.node.vms.RegisterVirtualMachine(registration("web"))
        seen = ostler.watch(self.node)
        first = next(seen)
        self.assertEqual((first.virtual_machine.name, first.initial), (name("web"), True))
        self.node.vms.RegisterVirtualMachine(registration("db"))
        change = next(seen)
        self.assertEqual((change.virtual_machine.name, change.initial), (name("db"), False))
        seen.close()
        self.node.vms.DestroyVirtualMachine(vm_pb2.DestroyVirtualMachineRequest(name=name("web")))
        resumed = ostler.watch(self.node, resume_token=change.resume_token)
        seen = next(resumed).virtual_machine
        while seen.state != State.DESTROYED:
            self.assertEqual((seen.name, seen.state), (name("web"), State.DESTROYING))
            seen = next(resumed).virtual_machine
        self.assertEqual(seen.name, name("web"))
        resumed.close()

    def test_waiting_ends_with_the_state_a_time_limit_or_an_error(self):
        self.assertEqual(self.fails(ostler.wait_for, self.node, name("ghost"), "RUNNING").reason, "VM_NOT_FOUND")
        self.node.vms.RegisterVirtualMachine(registration("web"))
        self.assertEqual(ostler.wait_for(self.node, name("web"), "REGISTERED").name, name("web"))
        with self.assertRaises(TimeoutError):
            ostler.wait_for(self.node, name("web"), "RUNNING", timeout=1)
        destroy = vm_pb2.DestroyVirtualMachineRequest(name=name("web"))
        # Some times as long as the wait takes to begin: of a VM that is gone by then nothing is to be waited for.
        threading.Timer(2, lambda: self.node.vms.DestroyVirtualMachine(destroy)).start()
        self.assertEqual(ostler.wait_for(self.node, name("web"), State.DESTROYED).state, State.DESTROYED)

    def test_the_console_of_a_vm_that_does_not_run_says_so(self):
        self.node.vms.RegisterVirtualMachine(registration("web"))
        with ostler.Console(self.node, name("web")) as console:
            self.assertEqual(self.fails(console.read_until, "#").reason, "NO_PROCESS")

    def test_a_plugin_is_uploaded_and_bound(self):
        component = pathlib.Path(os.environ["PLUGIN"]).read_bytes()
        plugin = "tenants/acme/plugins/own"
        made = ostler.upload_plugin(self.node, plugin, component, {"max-vcpus": "1"})
        self.assertEqual((made.name, made.size_bytes), (plugin, len(component)))
        refused = self.fails(self.node.vms.RegisterVirtualMachine, registration("web", vcpus=2))
        self.assertEqual(refused.reason, "POLICY_DENIED")
        self.node.plugins.UnloadPlugin(plugin_pb2.UnloadPluginRequest(name=plugin))
        self.node.vms.RegisterVirtualMachine(registration("web", vcpus=2))

    def test_others_see_nothing_and_the_operator_everything(self):
        made = self.node.vms.RegisterVirtualMachine(registration("web"))
        get = vm_pb2.GetVirtualMachineRequest(name=made.name)
        with node("tenant-globex") as globex, node("operator-admin") as operator:
            self.assertEqual(self.fails(globex.vms.GetVirtualMachine, get).reason, "VM_NOT_FOUND")
            self.assertEqual(operator.vms.GetVirtualMachine(get).uid, made.uid)
            tenants = operator.tenants.ListTenants(tenant_pb2.ListTenantsRequest()).tenants
            self.assertEqual(tenants[0].usage.vms, 1)

    def test_a_node_that_is_not_there_is_an_error_too(self):
        with ostler.connect("127.0.0.1:1", pathlib.Path(os.environ["CERTS"]) / "tenant-acme") as nowhere:
            error = self.fails(nowhere.vms.ListVirtualMachines, vm_pb2.ListVirtualMachinesRequest())
            self.assertEqual((error.code, error.reason), (grpc.StatusCode.UNAVAILABLE, ""))
            self.assertEqual(self.fails(next, ostler.watch(nowhere)).code, grpc.StatusCode.UNAVAILABLE)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
