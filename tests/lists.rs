//! Lists page by page, filtered and in order. Needs no guest.

use std::process::Command;

use crate::support::client::wait;
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use tonic::{Code, Status};

fn ask(caller: &Caller, request: &v1::ListVirtualMachinesRequest) -> Result<v1::ListVirtualMachinesResponse, Status> {
    wait(caller.vms.clone().list_virtual_machines(request.clone())).map(tonic::Response::into_inner)
}

fn names(vms: &[v1::VirtualMachine]) -> Vec<&str> {
    vms.iter().map(|vm| vm.name.rsplit('/').next().unwrap()).collect()
}

/// All pages from the request on, one after the other.
fn pages(caller: &Caller, mut request: v1::ListVirtualMachinesRequest) -> Vec<Vec<v1::VirtualMachine>> {
    let mut pages = Vec::new();
    loop {
        let page = ask(caller, &request).unwrap();
        pages.push(page.virtual_machines);
        if page.next_page_token.is_empty() {
            return pages;
        }
        request.page_token = page.next_page_token;
    }
}

fn register(caller: &Caller, vm: &str, vcpus: u32) {
    caller.register(vm, v1::VirtualMachineSpec { vcpus, ..small() }).unwrap();
}

#[test]
fn a_list_is_read_page_by_page_while_it_changes() {
    let host = Host::start();
    let acme = host.tenant("acme");
    for vm in ["a", "b", "c", "d", "e"] {
        register(&acme, vm, 1);
    }
    let by_two = v1::ListVirtualMachinesRequest { page_size: 2, ..Default::default() };
    let all = pages(&acme, by_two.clone());
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(names(&all.concat()), ["a", "b", "c", "d", "e"]);
    let back = v1::ListVirtualMachinesRequest { order_by: "name desc".into(), ..by_two.clone() };
    assert_eq!(names(&pages(&acme, back).concat()), ["e", "d", "c", "b", "a"]);

    // What is added before the page or removed, the last one of it too, moves nothing.
    let first = ask(&acme, &by_two).unwrap();
    register(&acme, "aa", 1);
    acme.destroy("b", false).unwrap();
    let rest = pages(&acme, v1::ListVirtualMachinesRequest { page_token: first.next_page_token, ..by_two });
    assert_eq!(names(&rest.concat()), ["c", "d", "e"]);
}

#[test]
fn a_filter_chooses_and_the_command_line_takes_it() {
    let host = Host::start();
    let (acme, globex, operator) = (host.tenant("acme"), host.tenant("globex"), host.operator());
    register(&acme, "web-1", 1);
    register(&acme, "web-2", 2);
    register(&acme, "db", 4);
    register(&globex, "web-3", 1);
    acme.start("db").unwrap_err();
    let listed = |caller: &Caller, filter: &str| {
        let request = v1::ListVirtualMachinesRequest { filter: filter.into(), page_size: 1, ..Default::default() };
        let vms = pages(caller, request).concat();
        names(&vms).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(listed(&acme, r#"state = REGISTERED AND name : "web""#), ["web-1", "web-2"]);
    assert_eq!(listed(&acme, "state = FAILED"), ["db"]);
    assert_eq!(listed(&acme, "vcpus >= 2 AND state != FAILED"), ["web-2"]);
    // A filter only narrows what may be seen.
    assert_eq!(listed(&acme, "tenant = globex"), [""; 0]);
    assert_eq!(listed(&operator, "tenant = globex"), ["web-3"]);

    let run = |filter: &str| {
        let mut command: Command = host.command("tenant-acme");
        let output = command.args(["vm", "list", "--filter", filter]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, table, _) = run("name : web AND vcpus = 2");
    assert!(code == Some(0) && table.lines().count() == 2 && table.contains("acme/web-2"), "{table}");
    let (code, _, error) = run("colour = red");
    assert!(code == Some(2) && error.contains("memory_mib"), "{error}");
}

#[test]
fn absurd_pages_orders_and_filters_name_their_field() {
    let host = Host::start();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    for vm in ["a", "b", "c"] {
        register(&acme, vm, 1);
        register(&globex, vm, 1);
    }
    let plain = v1::ListVirtualMachinesRequest::default();
    let one = v1::ListVirtualMachinesRequest { page_size: 1, ..plain.clone() };
    let token = ask(&acme, &one).unwrap().next_page_token;
    let theirs = ask(&globex, &one).unwrap().next_page_token;
    let with = |token: &str| v1::ListVirtualMachinesRequest { page_token: token.into(), ..plain.clone() };
    let refused = [
        (v1::ListVirtualMachinesRequest { page_size: -1, ..plain.clone() }, "page_size"),
        (v1::ListVirtualMachinesRequest { page_size: i32::MIN, ..plain.clone() }, "page_size"),
        (v1::ListVirtualMachinesRequest { order_by: "colour".into(), ..plain.clone() }, "order_by"),
        (v1::ListVirtualMachinesRequest { order_by: "x".repeat(200 << 10), ..plain.clone() }, "order_by"),
        (v1::ListVirtualMachinesRequest { filter: "state = SLEEPING".into(), ..plain.clone() }, "filter"),
        (v1::ListVirtualMachinesRequest { filter: "(".repeat(200 << 10), ..plain.clone() }, "filter"),
        (with("AAAA"), "page_token"),
        (with("!!!"), "page_token"),
        (with(&"A".repeat(200 << 10)), "page_token"),
        (with(&theirs), "page_token"),
        (v1::ListVirtualMachinesRequest { filter: "vcpus = 1".into(), ..with(&token) }, "page_token"),
        (v1::ListVirtualMachinesRequest { parent: "tenants/acme".into(), ..with(&token) }, "page_token"),
    ];
    for (request, field) in refused {
        let facts = facts(&ask(&acme, &request).unwrap_err());
        assert_eq!((facts.code, facts.metadata["field"].as_str()), (Code::InvalidArgument, field), "{facts:?}");
        assert!(facts.message.len() < 600, "{facts:?}");
    }
    assert_eq!(names(&ask(&acme, &with(&token)).unwrap().virtual_machines), ["b", "c"]);
    let endless = v1::ListVirtualMachinesRequest { page_size: i32::MAX, ..plain };
    assert_eq!(ask(&acme, &endless).unwrap().virtual_machines.len(), 3);
    let negative = v1::ListPluginsRequest { page_size: -1, ..Default::default() };
    let refused = wait(acme.plugins.clone().list_plugins(negative)).unwrap_err();
    assert_eq!(facts(&refused).metadata["field"], "page_size");
    let negative = v1::ListHostDevicesRequest { page_size: -1, ..Default::default() };
    let refused = wait(host.operator().host.clone().list_host_devices(negative)).unwrap_err();
    assert_eq!(facts(&refused).metadata["field"], "page_size");
}
