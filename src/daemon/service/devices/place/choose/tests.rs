//! Cases of the filter, and of what is known of a node.

use super::*;
use crate::daemon::record::samples;
use crate::model::{MemorySpec, Placement};

fn node(number: u32, available_mib: u64) -> Node {
    let cpus = format!("{number}").parse().ok();
    Node { number, cpus, memory_mib: 4096, available_mib, two_mib_pages: 0, one_gib_pages: 0 }
}

/// A VM of 2 vCPUs and 256 MiB.
fn vm(tenant: &str) -> VmRecord {
    samples::running(tenant, "web")
}

fn on(node: u32, tenant: &str) -> VmRecord {
    VmRecord { placement: Some(Box::new(Placement { node, cpus: "0".parse().unwrap(), decision: None })), ..vm(tenant) }
}

fn offered(nodes: &[Node], table: &Table) -> Result<Vec<PlaceCandidate>, String> {
    let near = Near::from([(1, 2)]);
    offer(&vm("acme"), nodes, table, &near, &near).map(|request| request.candidates).map_err(|error| error.to_string())
}

#[test]
fn offers_the_nodes_that_can_hold_the_vm_with_what_is_there_and_near() {
    let vms = [on(0, "acme"), on(0, "globex"), on(1, "globex"), vm("acme"), VmRecord { run: None, ..on(1, "acme") }];
    let (nodes, table) = now(vec![node(0, 256), node(1, 1024), node(2, 255)], vms.iter(), &Table::new());
    let offered = offered(&nodes, &table).unwrap();
    let facts =
        |one: &PlaceCandidate| (one.node, one.vms, one.own_vms, one.placed_vcpus, one.placed_mib, one.own_devices);
    assert_eq!(offered.iter().map(facts).collect::<Vec<_>>(), [(0, 2, 1, 4, 512, 0), (1, 1, 0, 2, 256, 2)]);
    assert_eq!((offered[0].available_mib, offered[1].free_vfs), (256, 2));
}

#[test]
fn what_each_node_lacks_is_told_when_none_will_do() {
    let error = offered(&[node(0, 64), Node { cpus: None, ..node(1, 4096) }], &Table::new()).unwrap_err();
    assert!(error.contains("(core.no-node): node 0 has too little memory, node 1 has no CPU;"), "{error}");
    assert!(offered(&[], &Table::new()).unwrap_err().contains("this host shows none"));
}

#[test]
fn a_vm_that_names_its_node_or_has_been_placed_is_not_asked_about_and_counts() {
    let mut named = vm("acme");
    assert!(is_anywhere(&named) && !is_anywhere(&on(0, "acme")));
    named.spec = named.spec.with_memory(MemorySpec { numa_node: Some(1), ..MemorySpec::default() }).unwrap();
    assert!(!is_anywhere(&named));
    let (_, table) = now(vec![], [&named].into_iter(), &Table::new());
    assert_eq!(table[&named.uid].node, 1);
}

#[test]
fn memory_that_is_promised_and_not_on_record_is_not_free() {
    let (recorded, begun) = (on(0, "acme"), vm("globex"));
    let chosen = Table::from([(recorded.uid, Placed::on(0, &recorded)), (begun.uid, Placed::on(0, &begun))]);
    let (nodes, table) = now(vec![node(0, 600), node(1, 600)], [&recorded, &begun].into_iter(), &chosen);
    assert_eq!((nodes[0].available_mib, nodes[1].available_mib, table.len()), (344, 600, 2));
    let huge = Placed { pages: PageSize::Huge2M, ..Placed::on(0, &begun) };
    let free = vec![Node { two_mib_pages: 130, ..node(0, 600) }];
    let (nodes, _) = now(free, std::iter::empty(), &Table::from([(begun.uid, huge)]));
    assert_eq!((nodes[0].available_mib, nodes[0].two_mib_pages), (600, 2));
}

#[test]
fn the_first_that_still_can_is_taken_on_the_cpus_that_were_offered() {
    let order = offered(&[node(0, 256), node(1, 256)], &Table::new()).unwrap();
    let first = |nodes: &[Node]| first_of(&order, &vm("acme"), nodes).map(|first| first.node);
    assert_eq!(first(&[node(0, 256), node(1, 256)]), Some(0));
    assert_eq!(first(&[node(0, 255), node(1, 256)]), Some(1));
    assert_eq!(first(&[Node { cpus: "7".parse().ok(), ..node(0, 256) }, node(2, 256)]), None);
}

#[test]
fn a_vm_that_came_since_is_news_and_one_that_went_is_not() {
    let (there, came) = (on(0, "acme"), on(0, "globex"));
    let table = |vms: &[&VmRecord]| vms.iter().map(|vm| (vm.uid, Placed::on(0, vm))).collect::<Table>();
    assert!(has_news(0, &table(&[&there]), &table(&[&there, &came])));
    assert!(!has_news(1, &table(&[&there]), &table(&[&there, &came])));
    assert!(!has_news(0, &table(&[&there, &came]), &table(&[&came])));
}
